-- What edgekit 0.1.0 wrote as schema 1: one good attempt, one pending, one device.
BEGIN TRANSACTION;
CREATE TABLE attempts (
	job_key VARCHAR(64) NOT NULL, 
	attempt INTEGER NOT NULL, 
	begun VARCHAR(32) NOT NULL, 
	recorded VARCHAR(32), 
	status VARCHAR(16), 
	run TEXT, 
	PRIMARY KEY (job_key, attempt)
);
INSERT INTO "attempts" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',1,'2026-11-26T02:59:07+00:00','2026-11-26T02:59:07+00:00','ok','{"schema_version":1,"job_key":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","attempt":1,"status":"ok","error":null,"artifact_sha256":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","device_fingerprint":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc","plan":{"threads":1,"delegate":"default","cores":null,"cold_starts":5,"warmup_min_runs":10,"warmup_max_seconds":5.0,"min_samples":200,"min_seconds":2.0,"max_seconds":30.0,"memory":true,"accuracy":true,"timeout_seconds":900.0},"runner_sha256":"dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd","inputs_sha256":"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee","runtime":null,"cold_starts":[],"warmup_ns":[],"latency_ns":[10,20],"sampled_every":1,"stopped_by":null,"memory":null,"before":null,"after":null,"evaluated":null,"outputs_sha256":null,"unmeasured":{},"flags":[],"phase_ns":{},"host_ns":{}}');
INSERT INTO "attempts" VALUES('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',2,'2026-11-26T02:59:07+00:00',NULL,NULL,NULL);
CREATE TABLE devices (
	fingerprint VARCHAR(64) NOT NULL, 
	info TEXT NOT NULL, 
	PRIMARY KEY (fingerprint)
);
INSERT INTO "devices" VALUES('8609f8ffefef2b71f47a98d067a35e0bdaee3b816b12de410a4110d206e38298','{"schema_version":1,"spec":"local","kind":"local","serial":"s","model":null,"soc":null,"cpu_model":null,"cpu_features":[],"cores":null,"clusters":[],"ram_bytes":null,"os":null,"kernel":null,"abi":null,"libc":null,"python":null,"governor":null,"android_api":null,"emulated":false,"emulation":null,"shares_host_cpu":false,"boot_id":null}');
CREATE TABLE edgekit_meta (
	schema_version INTEGER NOT NULL, 
	PRIMARY KEY (schema_version)
);
INSERT INTO "edgekit_meta" VALUES(1);
COMMIT;
