"""Who runs where and when. Will be the only home of Celery and Redis; a local run needs none of it. No torch."""
