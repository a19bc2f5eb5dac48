"""Write a folder of your own data to try `undrift learn` with: two small tasks, drawn here.

    python examples/own_data.py mine
    python examples/own_data.py golden --rows 12 --seed 1 --only plates

`mine/plates` asks for the letters on a number plate, `mine/gauges` whether a gauge is in the red.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


def plate(draw: ImageDraw.ImageDraw, rng: random.Random) -> tuple[str, str]:
    """Draw a number plate."""
    text = "".join(rng.choices("ABCDEFGH", k=2))
    draw.rounded_rectangle((4, 28, 92, 68), 6, fill="white", outline="black", width=2)
    draw.text((48, 48), text, fill="black", anchor="mm", font=ImageFont.load_default(30))
    return "Which letters are on the plate?", text


def gauge(draw: ImageDraw.ImageDraw, rng: random.Random) -> tuple[str, str]:
    """Draw a gauge, whose last third is red."""
    draw.arc((12, 20, 84, 92), 180, 300, fill="gray", width=6)
    draw.arc((12, 20, 84, 92), 300, 360, fill="red", width=6)
    angle = math.radians(rng.choice([*range(185, 290), *range(310, 355)]))
    draw.line((48, 56, 48 + 32 * math.cos(angle), 56 + 32 * math.sin(angle)), "black", 3)
    return "Is the pointer in the red?", "yes" if angle > math.radians(300) else "no"


TASKS = {"plates": plate, "gauges": gauge}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=500, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TASKS, action="append", help="this task (repeatable)")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    for name in asked.only or TASKS:
        made, folder = TASKS[name], asked.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(asked.rows):
            picture = Image.new("RGB", (96, 96), "lightsteelblue")
            question, answer = made(ImageDraw.Draw(picture), rng)
            picture.save(folder / f"{number}.png")
            rows.append(
                {
                    "question_id": number,
                    "image": f"{number}.png",
                    "text": question,
                    "answer": answer,
                }
            )
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
