"""Open multipart uploads: what a killed job leaves in a bucket, where no listing of files shows it.

`pyarrow.fs` can neither list nor abort them; `boto3` can, where it is installed. Otherwise a rule
of the bucket does it: AbortIncompleteMultipartUpload.
"""

from __future__ import annotations

import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pyarrow import fs as pafs

from raysys.errors import BuildError
from raysys.store.collect import Waste
from raysys.store.storage import Storage

UPLOAD = "upload"
_OLD_S = 24 * 3600.0
_RULE = (
    "open multipart uploads are not looked for without boto3: install it, or give the bucket a "
    "lifecycle rule with AbortIncompleteMultipartUpload"
)


def open_uploads(storage: Storage) -> tuple[list[Waste], str | None]:
    """Return the uploads of a run that began so long ago, and why they are not known.

    Raises:
        BuildError: the store does not answer.
    """
    if not isinstance(storage.filesystem, pafs.S3FileSystem):
        return [], None
    try:
        import boto3  # noqa: F401
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
        )
    except ImportError:
        return [], _RULE
    bucket, _, prefix = storage.root.partition("/")
    found = []
    now = storage.now()
    try:
        client = _client(storage)
        for page in client.get_paginator("list_multipart_uploads").paginate(
            Bucket=bucket, Prefix=prefix and f"{prefix}/"
        ):
            for upload in page.get("Uploads", ()):
                began: datetime.datetime = upload["Initiated"]
                age_s = now - began.timestamp()
                if age_s >= _OLD_S:
                    parts = _parts(client, bucket, upload)
                    if parts is None:  # it ended meanwhile
                        continue
                    size = sum(part["Size"] for part in parts)
                    place = f"{upload['Key']}?{upload['UploadId']}"
                    why = f"began {age_s / 3600:.0f} hours ago"
                    found.append(Waste(UPLOAD, place, why, len(parts), size))
    except (BotoCoreError, ClientError) as error:
        raise BuildError(f"{storage.run} does not list its open uploads: {error}") from error
    return found, None


def abort(storage: Storage, upload: Waste) -> None:
    """Abort one upload; nothing happens where it has ended."""
    from botocore.exceptions import BotoCoreError, ClientError

    key, _, upload_id = upload.place.rpartition("?")
    bucket = storage.root.partition("/")[0]
    try:
        _client(storage).abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
    except (BotoCoreError, ClientError) as error:
        if "NoSuchUpload" not in str(error):
            raise BuildError(f"upload {key} is not aborted: {error}") from error


def _parts(client: Any, bucket: str, upload: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the parts of an upload; None where there is no such upload any more."""
    which = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    try:
        pages = client.get_paginator("list_parts").paginate(**which)
        return [part for page in pages for part in page.get("Parts", ())]
    except client.exceptions.ClientError as error:
        if _is_gone(error):
            return None
        raise


def _is_gone(error: Any) -> bool:
    return bool(error.response.get("Error", {}).get("Code") == "NoSuchUpload")


def _client(storage: Storage) -> Any:
    """Return a client of the store, as the run's URI and the environment name it."""
    import boto3

    parts = urlsplit(storage.run)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    settings: dict[str, Any] = {}
    if "endpoint_override" in options:
        host = options["endpoint_override"]
        scheme = options.get("scheme", "https")
        settings["endpoint_url"] = host if "://" in host else f"{scheme}://{host}"
    if "region" in options:
        settings["region_name"] = options["region"]
    if parts.username:
        settings["aws_access_key_id"] = unquote(parts.username)
        settings["aws_secret_access_key"] = unquote(parts.password or "")
    return boto3.client("s3", **settings)
