"""The command line: one file for what is asked for (main), what is run (target, subject), and each thing done with it."""
