"""What the subcommands do: they call the package's functions and print what comes back."""
