"""``crossfade schema``: print the JSON Schema of job files, for editors."""

from __future__ import annotations

from pathlib import Path

from crossfade.base.errors import OptionError
from crossfade.base.options import Options, option
from crossfade.cli.command import as_command

_EXAMPLES = (
    ("crossfade schema --out job.schema.json", "Write the schema to a file, which job files and editors can name."),
    ("crossfade schema", "Print it."),
)
_NOTES = """\
Editors with a YAML language server, such as VS Code with the extension YAML, complete and check a job file whose first
line names the schema, relative to the job file:
  # yaml-language-server: $schema=../job.schema.json
Some checks need values of several keys or the dataset: 'crossfade plan JOB' makes all of them.
"""


class SchemaOptions(Options):
    """Where the schema goes."""

    out: Path | None = option(None, "write the schema to FILE instead of printing it", group="output", value="FILE")


@as_command(
    "schema",
    "Print the JSON Schema of job files, with which editors complete and check them.",
    _EXAMPLES,
    _NOTES,
)
def run(options: SchemaOptions) -> int:
    """Print or write the schema.

    Raises:
        OptionError: the file cannot be written.
    """
    import json

    from crossfade.trainer.config.json_schema import job_schema

    text = json.dumps(job_schema(), indent=2, ensure_ascii=False) + "\n"
    if options.out is None:
        print(text, end="")
        return 0
    try:
        options.out.write_text(text, encoding="utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise OptionError("out", found=options.out, problem=problem, fix="name another file") from error
    return 0
