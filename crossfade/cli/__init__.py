"""Commands of ``crossfade``, one module each: ``add_parser(commands)`` and ``run(arguments) -> exit code``."""
