"""One sentence for each setting, the same as in docs/configuration.md; a test compares them."""

from collections.abc import Mapping
from types import MappingProxyType

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "name": "Names containers, network, lock: `[a-z0-9][a-z0-9-]{0,40}`.",
        "server.url": (
            "REST base of the server with its path, `https://` (or `http://`). Socket.IO is expected at "
            "the same host's root."
        ),
        "server.api_key": "The node's API key, as given out by the server.",
        "server.api_key_file": "File with the API key.",
        "server.ca_bundle": "PEM file with the certificate authorities to trust.",
        "state_dir": (
            "Absolute path for the journal, run directories and results that wait for the server; mode 0700."
        ),
        "databases[].label": "Identifier, as tasks name it. Labels differ in more than case.",
        "databases[].type": (
            "`csv`, `excel`, `parquet`, `sqlite`, `folder`, `sql`, `sparql`, `omop` or `other`."
        ),
        "databases[].uri": (
            "Absolute path of the file or folder (it must exist), or the address of a service, with the "
            "port unless its scheme has a usual one; algorithms that ask for the label reach exactly that"
            " server. With `other` either."
        ),
        "databases[].env": "Further parameters (text), given only to algorithms that ask for this database.",
        "policy.algorithms": (
            "What may run: patterns over the image name without tag, or `name@sha256:…` for exactly one "
            "content. Neither this nor `algorithm_stores`: nothing runs."
        ),
        "policy.algorithm_stores": (
            "Algorithm stores whose approval counts: patterns over the store's whole address. The store "
            "itself is asked about the content that will run."
        ),
        "policy.combine": (
            "When both lists are there: `both` must allow an image, or `either` is enough. A list that is"
            " alone decides alone."
        ),
        "policy.users": (
            "Who may ask: ids of users, addresses of consumers of the compute API, or names where the "
            "server tells them (those of vantage6 do not). `[]`: nobody."
        ),
        "policy.organizations": "Whose users may ask: ids or names of organizations. `[]`: none.",
        "policy.own_organization_only": "Only users of this node's own organization may ask.",
        "policy.basics_algorithm": (
            "`false` refuses the infrastructure's own image `algorithm-basics`, whatever else allows it."
        ),
        "policy.restrict[].image": (
            "Pattern over the image name without tag: which images the entry restricts. Every entry that "
            "means an image counts."
        ),
        "policy.restrict[].methods": "Methods these images may be called with, patterns allowed. `[]`: none.",
        "policy.restrict[].databases": "Labels these images may ask for, patterns allowed. `[]`: none.",
        "policy.gpu": (
            "Images that get all GPUs of this machine: patterns as in `policy.algorithms`. Nothing "
            "listed: no run gets one."
        ),
        "encryption.private_key": (
            "PEM file with the organization's RSA private key, needed in an encrypted collaboration and "
            "refused in any other. Not readable by others; a relative name is a systemd credential."
        ),
        "encryption.fingerprints": (
            "The only public keys believed for these organizations: fingerprint by the organization's "
            "number. Of others the first key seen is pinned."
        ),
        "images.pull": "When the registry is asked: `always`, `missing`, `never`.",
        "images.registries[].host": "Registry, with port if it has one.",
        "images.registries[].username": "User name there.",
        "images.registries[].password": "Password there.",
        "images.registries[].password_file": "File with the password.",
        "images.docker_config": (
            "Docker's own `config.json`, for registries that are not listed above: its logins, identity "
            "tokens and credential helpers."
        ),
        "images.max_size": (
            "Largest image that is pulled, unpacked. A pull is also called off when it leaves less than "
            "`limits.min_free_disk` on the engine's disk."
        ),
        "images.keep": "How long an image that this agent pulled stays without being used.",
        "images.disk_pressure": (
            "When the engine's disk is fuller, unused images that this agent pulled go earlier, the "
            "longest unused first, until it is not."
        ),
        "limits.concurrent_runs": (
            "Runs at the same time, of the whole agent. A run that waits for its subtasks and "
            "uses no CPU does not count."
        ),
        "limits.cpus": "CPUs of a run.",
        "limits.memory": "Memory of a run; there is no swap beyond it.",
        "limits.total_memory": (
            "Memory of all runs together, those included that wait for subtasks: a run whose `limits.memory` "
            "no longer fits waits. Less than "
            "`limits.memory` is refused."
        ),
        "limits.runs_per_person": (
            "Runs in flight of one researcher, those included that wait for subtasks, from which on another "
            "researcher's waiting run goes first. One alone may still use every slot."
        ),
        "limits.pids": "Processes and threads of a run.",
        "limits.open_files": "Open files of each process of a run.",
        "limits.tmp_size": "Private `/tmp` of a run, held in memory.",
        "limits.output_size": "Result of a run, and the largest file it may write.",
        "limits.log_size": "Log of a run that is kept and sent: its beginning and its end.",
        "limits.min_free_disk": (
            "With less space free where the state directory is, or where the engine keeps its images on "
            "this machine, no further run begins; a pull is called off; and where it is the state directory, "
            "the runs that filled it most are ended, one after the other."
        ),
        "limits.pull_time": (
            "How long it may take until a run's input and image are here. Time in which the server is "
            "away does not count."
        ),
        "limits.start_time": (
            "How long it may take then until its container runs. Time in which the server is away does "
            "not count."
        ),
        "limits.run_time": "How long a run may take.",
        "limits.accept_unenforced": (
            "Start although the engine does not enforce all limits on a run, as engines without root may:"
            " then one run can use up the machine."
        ),
        "keep.runs": (
            "How long the journal remembers a run after its end. A run that is not reported, or that the "
            "server still lists, stays."
        ),
        "keep.folders": (
            "How long result and log of a run stay after its report, below `state_dir/kept`. `0s`: it "
            "goes with the report."
        ),
        "network.proxy_port": "Port of the proxy inside the isolated network.",
        "network.subnet": "IPv4 range of the isolated network, private, `/16` to `/28`.",
        "network.accept_open_host": "Start although algorithms can reach services of this host.",
        "network.probe_image": (
            "Image with python3 for the isolation probe, for an agent that itself runs in a container."
        ),
        "network.kept_ready": (
            "How many network namespaces at most are kept ready, so that a run starts several times "
            "faster. `0`: each run waits until the engine has made it one."
        ),
        "egress.allow": (
            "Places outside that algorithms may reach through a filtering proxy, each with its port or "
            "ports: `api.example.org:443`, `*.example.org:443` (names below it only), `192.0.2.7:80`, "
            "`10.2.0.0/16:8000-8010`. Needs Squid."
        ),
        "egress.port": "Port of that proxy inside the isolated network, above 1023.",
        "services[].name": "A host name in `databases[].uri` that is to mean the following.",
        "services[].container": "A container of this machine, by its name.",
        "services[].tunnel.host": "The machine the secure shell logs in to.",
        "services[].tunnel.port": "Its port.",
        "services[].tunnel.user": "The account there.",
        "services[].tunnel.key_file": (
            "Absolute path of the private key, without a passphrase, not readable by others."
        ),
        "services[].tunnel.host_key": (
            "The machine's public key as in `known_hosts` (`ssh-ed25519 AAAA…`), or its fingerprint "
            "(`SHA256:…`)."
        ),
        "services[].tunnel.target": "`host:port` of the server, as that machine sees it.",
        "hardening.relax[].image": "Pattern over the image name without tag: which images get what follows.",
        "hardening.relax[].image_user": "They run as the image's own user.",
        "hardening.relax[].writable_root": "They may write anywhere in their own file system.",
        "hardening.relax[].capabilities": "Linux capabilities they keep.",
        "container_user": (
            '`"uid:gid"` that all algorithms run as, in quotes; never root. Under root, without it, every'
            " run has a uid of its own."
        ),
        "container_users": (
            '`"first-last"`: the uids that runs have, and the groups of jobs. Counts only if the agent is'
            " root."
        ),
        "algorithm_env": (
            "Further variables for every algorithm, name and text. Names the node or the image sets "
            "itself are refused."
        ),
        "algorithm_hosts": (
            "Host names every algorithm finds, and their addresses. A name alone opens no way."
        ),
        "run_context_file": (
            "Every run gets a description of itself, `run_context.json`. Runs that ask for a database "
            "that is no file then end with `start failed`."
        ),
        "share.node_facts": (
            "The server may know labels, types and column names of the databases, and the allowed algorithms."
        ),
        "share.columns": (
            "With node_facts: the server may know the column names of csv, excel and parquet files, and "
            "of SQLite files with one table."
        ),
        "share.policy": (
            "With node_facts: the server may know the lists of algorithms, stores, organizations and ids "
            "of users, and then refuses tasks of others itself."
        ),
        "share.algorithm_logs": (
            "What researchers get of an algorithm's log: `full`, on `errors` only (when the run failed), "
            "or `off`."
        ),
        "share.live_logs": (
            "With `full`: lines are sent while the run goes on, at most `limits.log_size` of each run. "
            "Everybody in the collaboration may see them."
        ),
        "docker_host": "Address of the engine: `unix:///…` or `tcp://…`.",
        "logging.level": "`debug`, `info`, `warning`, `error`.",
        "logging.format": (
            "`console`, `json`, or `auto`: console on a terminal, fields of the journal under systemd, "
            "JSON lines otherwise."
        ),
        "status.listen": "Not available in this version.",
        "compute_api.listen": (
            "`address:port` where the compute API listens; nothing: it is off. An address that others "
            "reach needs `tls`. Needs the extra `compute`."
        ),
        "compute_api.tls.certificate": "Absolute path of a PEM file with the certificate and those above it.",
        "compute_api.tls.key": "PEM file with its private key, without a passphrase, not readable by others.",
        "compute_api.access": (
            "Who decides whether a consumer may use a data set: `deny` (nobody may), `addresses`, "
            "`grants` (see `node-agent grant`), `command`, `callback`."
        ),
        "compute_api.addresses": (
            "With `access: addresses`: who may, `0x…` in quotes; `*` is everybody who proves an address."
        ),
        "compute_api.command": (
            "Absolute path of a program that is asked: the question as JSON on its standard input, 0 lets in."
        ),
        "compute_api.callback": (
            'Address that is asked with a POST: 200 and `{"allowed": true}` let in. `https://`, or on '
            "this machine `http://`."
        ),
        "compute_api.callback_ca_bundle": "PEM file with the certificate authorities to trust there.",
        "compute_api.unsigned_status": (
            "Who knows a job's id sees how far it is without a signature, and little else."
        ),
        "compute_api.signed_bodies": (
            "Refuse requests whose signature does not cover the whole body; clients made for the "
            "specification cannot do that."
        ),
        "compute_api.max_waiting": "Jobs that may be open at the same time; further ones are refused.",
        "compute_api.requests_per_second": (
            "Requests from one peer, and in one consumer's name; whoever was quiet may have those of 20 s"
            " at once; more are refused for a moment."
        ),
        "compute_api.environments[].id": (
            "Name of a profile that jobs run in. Without any profile there is one called `default`, as "
            "large as `limits`."
        ),
        "compute_api.environments[].description": "A sentence for consumers.",
        "compute_api.environments[].cpus": "CPUs of a job; like all that follows not more than the limit.",
        "compute_api.environments[].memory": "Memory of a job.",
        "compute_api.environments[].disk": "What a job may write.",
        "compute_api.environments[].max_jobs": "Jobs at the same time; further ones wait.",
        "compute_api.environments[].max_job_time": "How long a job may run.",
        "compute_api.environments[].keep_results": "How long results stay after a job's end.",
        "compute_api.data_sets[].label": "Which of the `databases` is offered.",
        "compute_api.data_sets[].did": (
            "Its DID, `did:op:` and 64 hexadecimal digits. Derived from the agent's name and the label if"
            " not given; `node-agent offer` shows it."
        ),
        "compute_api.data_sets[].service_id": "What requests name as its service.",
        "compute_api.data_sets[].consumers": "Who may ask at all: addresses, `*` for everybody.",
        "compute_api.data_sets[].denied_consumers": "Who may not, whatever else allows it.",
        "compute_api.data_sets[].trusted_algorithms[].did": (
            "An algorithm of the catalogue that may use it; `*` is every one. Neither this nor "
            "`trusted_publishers`: none may."
        ),
        "compute_api.data_sets[].trusted_algorithms[].files_checksum": "SHA-256 its code must have.",
        "compute_api.data_sets[].trusted_algorithms[].container_checksum": (
            "SHA-256 that its entrypoint and digest, one behind the other, must have."
        ),
        "compute_api.data_sets[].trusted_publishers": (
            "Owners whose algorithms may use it; `*` is every one. With `trusted_algorithms` both must hold."
        ),
        "compute_api.data_sets[].raw_algorithms": (
            "Jobs may bring code of their own, for images that the policy allows."
        ),
        "compute_api.data_sets[].share_log": "Consumers get the log of jobs that used it.",
        "compute_api.algorithms[].did": (
            "DID of an algorithm of the catalogue. Derived from the agent's name, image, entrypoint and "
            "code if not given."
        ),
        "compute_api.algorithms[].owner": "Address of who published it, in quotes.",
        "compute_api.algorithms[].service_id": "What requests name as its service.",
        "compute_api.algorithms[].image": "Its image; a tag is not looked at.",
        "compute_api.algorithms[].digest": "The content that runs, `sha256:…`.",
        "compute_api.algorithms[].entrypoint": (
            'Command in the container, `$ALGO` stands for the code; no shell reads it. `""`: the image\'s '
            "own."
        ),
        "compute_api.algorithms[].contract": (
            "What its container finds: `ocean`, or `vantage6` for an algorithm made for vantage6."
        ),
        "compute_api.algorithms[].code": "Absolute path of a file that the container gets as the algorithm.",
    }
)
