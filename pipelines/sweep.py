from __future__ import annotations


def settle(job, registry, broker):
    standing = job.standing()  # before the fold: what is published in between is the next one's, and no error
    if job.fold().void:
        standing = job.standing()
    if standing.state == "finished":
        job.close({})
        registry.close(job.id)
    return standing
