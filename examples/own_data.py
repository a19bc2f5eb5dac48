"""Write a folder of your own data to try `undrift learn` with: two small tasks, drawn here.

    python examples/own_data.py mine

`mine/plates` asks for the letters on a number plate, `mine/gauges` whether a gauge is in the red.
"""

from __future__ import annotations

import json
import math
import random
import sys
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


def main() -> None:
    root, rng = Path(sys.argv[1]), random.Random(0)
    for name, made in {"plates": plate, "gauges": gauge}.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(500):
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
