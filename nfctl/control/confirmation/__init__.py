"""The confirmation of a change, and the process that undoes the change without one."""
