"""The tables of the embedded server. Owns the SQL that makes them, and nothing else.

Ids are never given twice: a node remembers runs that were deleted here. Nodes are counted from 11, so that nobody
mistakes the id of a node for that of its organization.
"""

VERSION = 1

TABLES = """
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE organization (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, domain TEXT NOT NULL DEFAULT '',
    address1 TEXT NOT NULL DEFAULT '', address2 TEXT NOT NULL DEFAULT '', zipcode TEXT NOT NULL DEFAULT '',
    country TEXT NOT NULL DEFAULT '', public_key TEXT NOT NULL DEFAULT ''
);

CREATE TABLE collaboration (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, encrypted INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE member (
    collaboration_id INTEGER NOT NULL REFERENCES collaboration,
    organization_id INTEGER NOT NULL REFERENCES organization,
    PRIMARY KEY (collaboration_id, organization_id)
);

CREATE TABLE user (
    id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT NOT NULL UNIQUE, password TEXT NOT NULL,
    firstname TEXT NOT NULL DEFAULT '', lastname TEXT NOT NULL DEFAULT '', email TEXT NOT NULL DEFAULT '',
    organization_id INTEGER NOT NULL REFERENCES organization, status TEXT, last_seen TEXT
);

CREATE TABLE node (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, key_hash TEXT NOT NULL UNIQUE, ip TEXT,
    organization_id INTEGER NOT NULL REFERENCES organization,
    collaboration_id INTEGER NOT NULL REFERENCES collaboration,
    status TEXT, last_seen TEXT, UNIQUE (organization_id, collaboration_id)
);
INSERT INTO sqlite_sequence (name, seq) VALUES ('node', 10);

CREATE TABLE node_config (
    id INTEGER PRIMARY KEY AUTOINCREMENT, node_id INTEGER NOT NULL REFERENCES node ON DELETE CASCADE,
    key TEXT NOT NULL, value TEXT NOT NULL
);

CREATE TABLE task (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, description TEXT NOT NULL, image TEXT NOT NULL,
    collaboration_id INTEGER NOT NULL REFERENCES collaboration, job_id INTEGER NOT NULL,
    parent_id INTEGER REFERENCES task ON DELETE CASCADE,
    init_org_id INTEGER NOT NULL REFERENCES organization, init_user_id INTEGER REFERENCES user,
    databases TEXT NOT NULL, plain INTEGER NOT NULL, created_at TEXT NOT NULL
);

CREATE TABLE run (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task_id INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    organization_id INTEGER NOT NULL REFERENCES organization, node_id INTEGER NOT NULL REFERENCES node,
    input TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'pending', assigned_at TEXT NOT NULL,
    started_at TEXT, finished_at TEXT, result TEXT, log TEXT
);
CREATE INDEX run_of_task ON run (task_id);
CREATE INDEX run_of_node ON run (node_id, finished_at);

CREATE TABLE port (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id INTEGER NOT NULL REFERENCES run ON DELETE CASCADE,
    port INTEGER NOT NULL, label TEXT
);

-- The first failure decides, even while other runs are active; two kinds of failure together are "failed".
CREATE VIEW task_view AS
WITH counted AS (
    SELECT task_id, count(*) AS runs, count(finished_at) AS finished, max(finished_at) AS finished_at,
        sum(status = 'active') AS active, sum(status = 'initializing') AS initializing,
        sum(status = 'pending') AS pending,
        count(DISTINCT status) FILTER (
            WHERE status NOT IN ('pending', 'initializing', 'active', 'completed')) AS failures,
        max(status) FILTER (
            WHERE status NOT IN ('pending', 'initializing', 'active', 'completed')) AS failure
    FROM run GROUP BY task_id
)
SELECT task.*,
    CASE
        WHEN counted.failures = 1 THEN counted.failure
        WHEN counted.failures > 1 THEN 'failed'
        WHEN counted.active > 0 THEN 'active'
        WHEN counted.initializing > 0 THEN 'initializing'
        WHEN counted.pending > 0 THEN 'pending'
        ELSE 'completed'
    END AS status,
    CASE WHEN counted.finished = counted.runs THEN counted.finished_at END AS finished_at,
    coalesce(counted.finished = counted.runs, 1) AS complete
FROM task LEFT JOIN counted ON counted.task_id = task.id;

CREATE VIEW run_view AS
SELECT run.*, task.collaboration_id, node.name AS node_name, node.status AS node_status, node.ip AS node_ip
FROM run JOIN task ON task.id = run.task_id JOIN node ON node.id = run.node_id;
"""
