"""The application for uvicorn and granian, which import it in each worker."""

from begin import IS_BROKEN, write_line

write_line()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await live(receive, send)
    else:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"ok\n"})


async def live(receive, send):
    await receive()
    if IS_BROKEN:
        await send({"type": "lifespan.startup.failed", "message": "this worker cannot start"})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
