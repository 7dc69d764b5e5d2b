//! Devices in: MQTT, HTTP ingest, admission.
