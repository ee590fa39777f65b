"""How Celery is set up here: JSON only, one control queue a pool, no remote control, leases that are looked after. Pure."""

from __future__ import annotations

from typing import Any

from ..config.settings import Settings
from .connection import for_celery

DEFAULT_POOL = "cpu"


def pool_name(named: str) -> str:
    """The pool that a worker serves unless told otherwise."""
    return named or DEFAULT_POOL


def of(settings: Settings, pool: str) -> dict[str, Any]:
    """Celery's configuration for a worker of a pool, or for whoever sends it control tasks."""
    control = f"lading.{pool_name(pool)}.control"
    url = for_celery(settings.broker_url)
    # Keys of its own: kombu's are shared by every queue of a database, and who restores them needs to know them all.
    transport = {
        "priority_steps": [0],
        "unacked_key": f"unacked:{control}",
        "unacked_index_key": f"unacked_index:{control}",
        "unacked_mutex_key": f"unacked_mutex:{control}",
        "unacked_mutex_expire": 5,  # else a worker that dies while it restores blocks everybody's restoring for minutes
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "visibility_timeout": 600,
        "socket_keepalive": True,
    }
    return {
        "broker_url": url,
        "result_backend": url,
        "broker_transport_options": transport,
        "result_backend_transport_options": {"global_keyprefix": ""},
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_default_queue": control,
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "result_expires": settings.result_ttl_s,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_pool": "solo",
        "worker_concurrency": 1,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_proc_alive_timeout": 60,
    }
