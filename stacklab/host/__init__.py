"""What this machine is and can do: its package mirror, its KVM, and the checks of `stacklab doctor`."""
