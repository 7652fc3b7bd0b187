"""In the HTTP process: the page, its pictures, and the questions that they take."""
