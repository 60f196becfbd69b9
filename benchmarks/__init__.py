"""Every performance figure, one command each; each beside what it is compared with, in one run."""
