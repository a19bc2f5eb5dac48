"""What learning one more task leaves on disk.

```
OUT/
├── learn.yaml      what was asked for; the same command goes on with what is not done yet
├── data.json       digests of every row and picture: a resumed one notices what has changed
├── adapter/        PEFT's format, with the record of all tasks learned so far
├── eval/before/, eval/after/   01-birds.jsonl ...: every prediction, before and after
├── train.jsonl     a line each few steps
├── live/01-birds/  TensorBoard's files, if --report-to asks so
├── manifest.json   what produced the numbers
└── result.json     the scores before and after; written last
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from undrift.rundir.ours import OF_LEARN
from undrift.rundir.paths import RunDir

_DIGEST = re.compile(r"^  digest: .*\n", re.MULTILINE)
_FROM = re.compile(r"^from: (.+)$", re.MULTILINE)


class LearnDir(RunDir):
    """The paths of one more task."""

    config_name = "learn.yaml"
    contents: ClassVar[Mapping[str, str]] = OF_LEARN

    @property
    def command(self) -> str:
        """What to type to go on with what is in the folder."""
        return "the command that began it"

    @property
    def result_file(self) -> Path:
        """The scores before and after."""
        return self.root / "result.json"

    def answers(self, when: str, number: int, name: str) -> Path:
        """Return the file with every prediction for one task, before or after."""
        return self.root / "eval" / when / f"{self.task(number, name).name}.jsonl"

    def config_text(self) -> str:
        """Read what makes the configuration another one.

        Older ones hold digests of rows, those of data.json now, and name an adapter as typed.
        """
        return _FROM.sub(_whole, _DIGEST.sub("", super().config_text()))


def _whole(found: re.Match[str]) -> str:
    adapter = Path(found[1])
    is_one = (adapter / "adapter_config.json").is_file()
    return f"from: {adapter.resolve()}" if is_one else found[0]
