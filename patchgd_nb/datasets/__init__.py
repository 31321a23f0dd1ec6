"The data sets: made, read and checked."
