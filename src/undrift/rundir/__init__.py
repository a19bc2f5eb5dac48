"""What a run leaves on disk, and how it is written. Works without torch."""

from __future__ import annotations

from undrift.rundir.checks import check_writable as check_writable
from undrift.rundir.checks import missing as missing
from undrift.rundir.files import atomic_file as atomic_file
from undrift.rundir.files import atomic_folder as atomic_folder
from undrift.rundir.files import atomic_write as atomic_write
from undrift.rundir.files import check_format as check_format
from undrift.rundir.files import check_regular as check_regular
from undrift.rundir.files import damaged as damaged
from undrift.rundir.files import is_name as is_name
from undrift.rundir.files import read_json as read_json
from undrift.rundir.files import read_lines as read_lines
from undrift.rundir.files import text_of as text_of
from undrift.rundir.files import write_json as write_json
from undrift.rundir.files import write_lines as write_lines
from undrift.rundir.paths import RunDir as RunDir
from undrift.rundir.records import read_answers as read_answers
from undrift.rundir.records import read_record as read_record
