"The command `course` as `python -m course_lib`."
from course_lib.stopping import start

start()
