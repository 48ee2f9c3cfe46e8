"""Published files to prepared datasets: found, read, sifted, written."""
