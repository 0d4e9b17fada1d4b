"""The JSON schema of params.yaml, for editors: `moalign schema --out resources/params.schema.json`."""

import json

from moalign import config, manifest


def run(out: str) -> None:
    """Write the schema that the types of `config` imply."""
    manifest.write_text(out, json.dumps(config.schema(), indent=1, ensure_ascii=False) + "\n")
