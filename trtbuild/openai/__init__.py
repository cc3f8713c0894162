"""The OpenAI API in front of a Triton server: app.py has the routes, service.py turns them into generations."""
