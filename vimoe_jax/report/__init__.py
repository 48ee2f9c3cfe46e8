"""A run's page and its pictures, made from the files in its workdir."""
