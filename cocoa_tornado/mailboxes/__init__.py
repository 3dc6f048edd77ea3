"""Where messages are kept until their devices have them: the port, and one module for each technology."""
