"""`python -m callipper_db` is the command line."""

from callipper_db.cli.main import main

main(prog_name="callipper-db")
