"""What a GPU would do, and does: budgets read off the machine code, and the checks for a machine with a GPU."""
