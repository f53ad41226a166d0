"""Write descriptions of classes, and measure them beside untrained models and best-of-N sampling."""
