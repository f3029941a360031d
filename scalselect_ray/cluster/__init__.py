"""The thin layer between the plain functions of the other packages and Ray."""
