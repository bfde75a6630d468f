"""``crossfade schema``: print the JSON Schema of job files, for editors."""

from __future__ import annotations

import json

from crossfade.base.options import Options
from crossfade.cli.command import as_command

_EXAMPLES = (
    ("crossfade schema", "Print it."),
    ("crossfade schema > job.schema.json", "Write it to a file, which job files and editors can name."),
)
_NOTES = """\
Editors with a YAML language server, such as VS Code with the extension YAML, complete and check a job file whose first
line names the schema, relative to the job file:
  # yaml-language-server: $schema=../job.schema.json
Some checks need values of several keys or the dataset: 'crossfade plan JOB' makes all of them.
"""


@as_command(
    "schema",
    "Print the JSON Schema of job files, with which editors complete and check them.",
    _EXAMPLES,
    _NOTES,
)
def run(options: Options) -> int:
    """Print the schema."""
    from crossfade.trainer.config.json_schema import job_schema

    print(json.dumps(job_schema(), indent=2, ensure_ascii=False))
    return 0
