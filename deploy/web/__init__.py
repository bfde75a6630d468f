"""The web servers of people and programs: the dashboard and 'crossfade serve', on uvicorn and Starlette."""
