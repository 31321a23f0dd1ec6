"The course: exercises that check themselves, student versions, grades; and the checkers of its six sessions."
