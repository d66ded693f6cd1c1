"""A bucket in a store that is not there: an emulator of Google Cloud Storage on the loopback address."""
import contextlib
import os
from http import HTTPStatus
from unittest import mock

NAME = "bucket"
ROOT = f"gs://{NAME}"


@contextlib.contextmanager
def emulated():
    """Yields the environment in which gcsfs, TensorStore and Google's client find the emulator; sets it here, too."""
    from gcp_storage_emulator import server
    with mock.patch.object(server, "HANDLERS", handlers(server)), \
            server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=NAME) as running:
        httpd = running._api._httpd
        httpd.handle_error = lambda *_: None  # gcsfs hangs up on answers that it needs no more
        url = f"http://127.0.0.1:{httpd.server_address[1]}"
        environment = dict(STORAGE_EMULATOR_HOST=url, TENSORSTORE_GCS_HTTP_URL=url, GCE_METADATA_ROOT="127.0.0.1:1",
                           NO_GCE_CHECK="true")
        with mock.patch.dict(os.environ, environment):
            yield environment


def handlers(server):
    """The emulator's, and what it lacks: generations of objects, conditions on them, moves."""
    objects = r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/"
    move = (objects + r"(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$", {"POST": moved(server.objects)})
    return move, *((path, {method: conditional(handler) for method, handler in by_method.items()})
                   for path, by_method in server.HANDLERS)


def moved(objects):
    def handle(request, response, storage):
        request.params["dest_bucket_name"] = request.params["bucket_name"]
        objects.copy(request, response, storage)
        if response.status == HTTPStatus.OK:
            storage.delete_file(request.params["bucket_name"], request.params["object_id"])

    return handle


def conditional(handler):
    """As TensorStore relies on it: what it has read is unchanged when it writes, and is not sent twice."""
    def handle(request, response, storage):
        generation = generation_of(request, storage)
        if generation != int(request.query.get("ifGenerationMatch", [generation])[0]):
            response.status = HTTPStatus.PRECONDITION_FAILED
        elif generation == int(request.query.get("ifGenerationNotMatch", [-1])[0]):
            response.status = HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage)
            if request.method == "GET":
                response["x-goog-generation"] = str(generation)

    return handle


def generation_of(request, storage):
    """The number of an object's present content, 0 where there is none."""
    params = request.params or {}
    with contextlib.suppress(Exception):  # the emulator has several that mean absence
        name = params.get("object_id") or request.query.get("name", [""])[0] or request.data["meta"]["name"]
        return int(storage.get_file_obj(params["bucket_name"], name)["generation"])
    return 0
