"""Machines that are there already: reached over SSH, judged, and left as they were found."""
