"""Buckets of a test S3 (moto), the settings that reach them, and Delta tables in them as PyPI's deltalake reads them."""

import datetime
import uuid

import requests
from deltalake import DeltaTable

SECRET = "correct-horse-battery-staple"
# moto takes a request that names any credentials.
ANYBODY = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=0"}
TODAY = datetime.datetime.now(datetime.UTC).date()
# Days that are over for longer than raw data is kept, and one that is not.
COLD = [str(TODAY - datetime.timedelta(days=back)) for back in (11, 10, 9)]
HOT = str(TODAY - datetime.timedelta(days=2))


def new_bucket(address):
    """The name of a new bucket."""
    name = f"lake-{uuid.uuid4().hex[:12]}"
    assert requests.put(f"{address}/{name}", headers=ANYBODY, timeout=20).status_code == 200
    return name


def engine(address, secret_file, more="request_s_max = 3\n"):
    """The section of the configuration that says how to get there."""
    secret_file.write_text(f"{SECRET}\n")
    return (
        f'[engines.s3]\nendpoint = "{address}"\nregion = "us-east-1"\nallow_http = true\naccess_key_id = "test"\n'
        f'secret_access_key_file = "{secret_file}"\n{more}'
    )


def delta(bucket, path):
    """A table as PyPI's deltalake reads it."""
    address, name = bucket
    options = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    return DeltaTable(f"s3://{name}/{path}", storage_options=options)


def archived(place, table="raw_metrics"):
    """A table of the archive as deltalake has it: in a folder, or in (bucket, prefix); nothing while it is not there."""
    try:
        return delta(place[0], f"{place[1]}/{table}") if isinstance(place, tuple) else DeltaTable(place / table)
    except Exception:
        return None
