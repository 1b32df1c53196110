"""The application for gunicorn, which imports it in each worker."""

from begin import begin

begin()


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]
