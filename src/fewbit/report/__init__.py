"""One self-contained HTML page that shows what quantization did to a network. Every number comes from the artifact's record or is
measured while the page is made; what is not known is said."""
