"""Who runs where and when. The only home of Celery and Redis; a local run needs none of it. No torch."""
