"""Draw docs/pocket.png.

Eight test pictures of each pocket task, question and answer beneath each row.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from undrift.data.benchmarks.pocket import benchmark
from undrift.data.picture_decoding import open_picture
from undrift.data.pocket.raw_data import font_path
from undrift.data.pocket.tasks import font


def main() -> None:
    """Write the sheet."""
    tasks = benchmark().tasks
    sheet = Image.new("RGB", (8 * 150 + 10, len(tasks) * 182 + 10), (255, 255, 255))
    pen, face = ImageDraw.Draw(sheet), font(font_path("DejaVuSans"), 13)
    for row, task in enumerate(tasks):
        top = 6 + row * 182
        first = task.test[0]
        question = first.question.replace("\n", "  |  ")
        pen.text(
            (8, top), f"{task.name}:  {question}   →   {first.answers[0]}", (0, 0, 0), font=face
        )
        for column, example in enumerate(task.test[:8]):
            picture = open_picture(example.images[0]).resize((144, 144))
            sheet.paste(picture, (8 + column * 150, top + 18))
            pen.text(
                (8 + column * 150, top + 162), example.answers[0][:20], (90, 90, 90), font=face
            )
    sheet.save(Path(__file__).parents[1] / "docs" / "pocket.png", optimize=True)


if __name__ == "__main__":
    main()
