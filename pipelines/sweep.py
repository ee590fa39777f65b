from __future__ import annotations


def settle(job, registry, broker):
    job.fold()
    standing = job.standing()
    if standing.state == "finished":
        job.close({})
        registry.close(job.id)
    return standing
