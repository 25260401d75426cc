"""Stands in for `kubectl`, `kind` and `docker` where there is no cluster: runs what the manifests in deploy/ say.

Each pod is a network namespace of its own, a root with nothing but the program and the libraries that it is linked with, and the
manifest's user, read-only root, volumes, secrets, environment, arguments, probes and grace. It stands for one machine:
no scheduler, no NetworkPolicy, no Services but as names. It must run in namespaces of its own, as root (tests/e2e/deploy/tutorial.rs).

Of kubectl it knows what the pages type; anything else is an error, so that nothing is believed to have been tried.
"""

import http.client, json, os, pathlib, re, shutil, signal, socket, ssl, subprocess, sys, threading, time
import yaml

HOME = pathlib.Path(os.environ["STAND_IN_HOME"])
PROGRAMS = {"/usr/local/bin/elastic": os.environ["ELASTIC_BIN"], "/usr/local/bin/etcd": os.environ.get("ELASTIC_ETCD", shutil.which("etcd"))}
REAL_KUBECTL = os.environ["STAND_IN_KUBECTL"]
WITHIN_S = int(os.environ.get("STAND_IN_WITHIN_S", 120))


def sh(*words):
    subprocess.run(words, check=True)


def fail(why):
    sys.exit(f"cluster.py: {why}")


def until(what, ready):
    by = time.monotonic() + WITHIN_S
    while not (found := ready()):
        if time.monotonic() > by:
            logs = "\n".join(f"--- {log}\n{log.read_text()[-1500:]}" for log in sorted(HOME.glob("pods/*/log")))
            fail(f"{what}: not within {WITHIN_S} s\n{logs}")
        time.sleep(0.05)
    return found


# What was applied, by kind and name; a file each.

def keep(thing):
    path = HOME / "things" / f"{thing['kind'].lower()}.{thing['metadata']['name']}.json"
    path.write_text(json.dumps(thing))


def thing(kind, name):
    path = HOME / "things" / f"{kind}.{name}.json"
    return json.loads(path.read_text()) if path.exists() else fail(f"there is no {kind} {name}")


def apply(text):
    things = [found for found in yaml.safe_load_all(text) if found]
    for found in things:
        if found["kind"] != "Namespace" and not (HOME / "things" / f"namespace.{found['metadata']['namespace']}.json").exists():
            fail(f"{found['kind']} {found['metadata']['name']}: its namespace is not there yet")
        keep(found)
        print(f"{found['kind'].lower()}/{found['metadata']['name']} applied")
    for found in things:
        if found["kind"] in ("StatefulSet", "Deployment"):
            settle(found)


# Pods.

def names(workload):
    name, count = workload["metadata"]["name"], workload["spec"].get("replicas", 1)
    return [f"{name}-{i}" if workload["kind"] == "StatefulSet" else f"{name}-pod{i}" for i in range(count)]


def settle(workload):
    """Starts the pods that are not there, and ends those that are too many."""
    wanted = names(workload)
    for pod in wanted:
        if not (HOME / "pods" / pod).exists():
            start(pod, own_claims(workload, pod), workload["spec"].get("serviceName"))
    ours = [p for p in (HOME / "pods").iterdir() if re.fullmatch(rf"{workload['metadata']['name']}-(pod)?\d+", p.name)]
    for pod in ours:
        if pod.name not in wanted:
            os.kill(int((pod / "kubelet").read_text()), signal.SIGTERM)
            until(f"the end of {pod.name}", lambda: (pod / "ended").exists())


def own_claims(workload, pod):
    """The pod's spec, with the claims that a StatefulSet makes for each of its pods."""
    spec = dict(workload["spec"]["template"]["spec"])
    for template in workload["spec"].get("volumeClaimTemplates", []):
        name = template["metadata"]["name"]
        keep({"kind": "PersistentVolumeClaim", "metadata": {"name": f"{name}-{pod}"}})
        spec["volumes"] = spec["volumes"] + [{"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{pod}"}}]
    return spec


def start(pod, spec, service=None):
    home = HOME / "pods" / pod
    home.mkdir(parents=True)
    number = len(list((HOME / "pods").iterdir())) + 1
    ip = f"10.244.0.{number}"
    (home / "ip").write_text(ip)
    sh("ip", "netns", "add", pod)
    sh("ip", "link", "add", f"pod{number}", "type", "veth", "peer", "name", "eth0", "netns", pod)
    sh("ip", "link", "set", f"pod{number}", "master", "pods", "up")
    sh("ip", "-n", pod, "addr", "add", f"{ip}/24", "dev", "eth0")
    sh("ip", "-n", pod, "link", "set", "eth0", "up")
    sh("ip", "-n", pod, "link", "set", "lo", "up")
    with open(HOME / "hosts", "a") as hosts:
        hosts.write(f"{ip} {pod}" + (f" {pod}.{service}" if service else "") + "\n")
    if os.fork() == 0:
        os.setsid()
        log = os.open(home / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0), os.dup2(log, 1), os.dup2(log, 2)
        (home / "kubelet").write_text(str(os.getpid()))
        try:
            kubelet(pod, ip, spec, home)
        except BaseException as why:  # into the log, which a wait that is in vain shows
            print(f"cluster.py: {why!r}", flush=True)
        finally:
            os._exit(0)
    until(f"the kubelet of {pod}", lambda: (home / "kubelet").exists())


def volume(home, spec, name):
    of = next(v for v in spec["volumes"] if v["name"] == name)
    if "secret" in of:
        path = home / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        for file, text in thing("secret", of["secret"]["secretName"])["stringData"].items():
            (path / file).write_text(text)
            os.chmod(path / file, of["secret"]["defaultMode"])
            os.chown(path / file, 0, spec["securityContext"]["fsGroup"])
        return path
    if "persistentVolumeClaim" in of:
        claim = of["persistentVolumeClaim"]["claimName"]
        thing("persistentvolumeclaim", claim)
        path = HOME / "claims" / claim
    elif "emptyDir" in of:
        path = home / "volumes" / name
    else:
        fail(f"volume {name}: {of}")
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, 0, spec["securityContext"]["fsGroup"])
    os.chmod(path, 0o2775)
    return path


def root(home, spec, container, program):
    """A file system like the image's, with the volumes in their places; gives the shell line that mounts it."""
    top = home / "root"
    for folder in ("proc", "dev", "etc", "sys"):
        (top / folder).mkdir(parents=True, exist_ok=True)
    (top / "etc/hosts").touch(), (top / "etc/nsswitch.conf").write_text("hosts: files\n")
    mounts = [f"mount --bind {top} {top}", f"mount --bind {HOME / 'hosts'} {top}/etc/hosts", f"mount --rbind /dev {top}/dev"]
    files = {program: PROGRAMS[program]}
    for line in subprocess.run(["ldd", PROGRAMS[program]], text=True, capture_output=True).stdout.splitlines():
        if found := re.search(r"(/\S+) \(0x", line):
            files[found[1]] = os.path.realpath(found[1])
    for inside, outside in files.items():
        place = top / inside.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        mounts.append(f"mount --bind {outside} {place}")
    for mount in container["volumeMounts"]:
        place = top / mount["mountPath"].lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        of = volume(home, spec, mount["name"])
        mounts.append(f"mount --bind {of} {place}")
        if mount.get("readOnly"):
            mounts.append(f"mount -o remount,bind,ro {place}")
    if container["securityContext"]["readOnlyRootFilesystem"]:
        mounts.append(f"mount -o remount,bind,ro {top}")
    return f"{' && '.join(mounts)} && mount -t proc proc {top}/proc"


def environment(pod, ip, container):
    fields = {"metadata.name": pod, "status.podIP": ip}
    env = {}
    for source in container.get("envFrom", []):
        env |= thing("secret", source["secretRef"]["name"])["stringData"]
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        env[variable["name"]] = fields[source] if source else variable["value"]
    return env


def kubelet(pod, ip, spec, home):
    """The life of a pod: its container is started again when it ends, until the pod is to go."""
    container = spec["containers"][0]
    is_job = spec.get("restartPolicy") == "Never"
    env = environment(pod, ip, container)
    told = lambda text: re.sub(r"\$\((\w+)\)", lambda m: env.get(m[1], m[0]), text)
    words = [told(word) for word in container.get("command", ["/usr/local/bin/elastic"]) + container["args"]]
    user = spec["securityContext"]
    line = root(home, spec, container, words[0])
    inner = [shutil.which("chroot"), f"--userspec={user['runAsUser']}:{user['runAsGroup']}", f"--groups={user['fsGroup']}", str(home / "root")]
    script = f"{line} && exec env -i {' '.join(f'{k}={v}' for k, v in env.items())} \"$@\""
    whole = ["ip", "netns", "exec", pod, "unshare", "-m", "-p", "-f", "--kill-child", "bash", "-ec", script, "bash", *inner, *words]
    leaving = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leaving.set())
    while True:
        process = subprocess.Popen(whole)
        grace = None
        while process.poll() is None:
            if leaving.is_set() and grace is None:
                time.sleep(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0))
                first = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                [os.kill(int(child), signal.SIGTERM) for child in first]
                grace = time.monotonic() + spec.get("terminationGracePeriodSeconds", 30)
            if grace and time.monotonic() > grace:
                process.kill()
            time.sleep(0.02)
        if leaving.is_set() or is_job:
            (home / "ended").write_text(str(process.returncode))
            return
        time.sleep(0.2)


def passes(pod, spec, kind):
    container = spec["containers"][0]
    probe = container.get(kind)
    if probe is None:
        return True
    get = probe["httpGet"]
    port = next(p["containerPort"] for p in container["ports"] if p["name"] == get["port"])
    ip = (HOME / "pods" / pod / "ip").read_text()
    try:
        if get.get("scheme") == "HTTPS":
            line = http.client.HTTPSConnection(ip, port, timeout=5, context=ssl._create_unverified_context())
        else:
            line = http.client.HTTPConnection(ip, port, timeout=5)
        line.request("GET", get["path"])
        return 200 <= line.getresponse().status < 400
    except OSError:
        return False


# What is typed.

def rollout_status(what):
    kind, name = what.split("/")
    workload = thing(kind, name)
    for pod in names(workload):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            until(f"{probe} of {pod}", lambda: passes(pod, workload["spec"]["template"]["spec"], probe))
    print(f"{kind} {name} is ready")


def address(what):
    """Of a pod, or of the first one behind a workload or a Service."""
    kind, name = what.split("/")
    if kind == "pod":
        return (HOME / "pods" / name / "ip").read_text()
    found = thing(kind, name)
    if kind == "service":
        selected = lambda w: w["spec"]["template"]["metadata"]["labels"].items() >= found["spec"]["selector"].items()
        workloads = [json.loads(p.read_text()) for p in (HOME / "things").glob("*.json")]
        found = next(w for w in workloads if w["kind"] in ("Deployment", "StatefulSet") and selected(w))
    return (HOME / "pods" / names(found)[0] / "ip").read_text()


def port_forward(what, *ports):
    ip = address(what)

    def pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        finally:
            a.close(), b.close()

    def serve(listener, port):
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection((ip, port))
            except OSError:
                near.close()
                continue
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            threading.Thread(target=pump, args=(far, near), daemon=True).start()

    for port in ports:
        near, _, far = port.partition(":")
        listener = socket.create_server(("127.0.0.1", int(near)))
        threading.Thread(target=serve, args=(listener, int(far or near)), daemon=True).start()
    signal.pause()


def create_secret(name, literals):
    pairs = [literal.removeprefix("--from-literal=").split("=", 1) for literal in literals.split()]
    keep({"kind": "Secret", "metadata": {"name": name}, "stringData": dict(pairs)})


def set_env(what, pair):
    kind, name = what.split("/")
    found = thing(kind, name)
    key, value = pair.split("=", 1)
    container = found["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [v for v in container.get("env", []) if v["name"] != key] + [{"name": key, "value": value}]
    keep(found)
    print(f"{what} env updated")


def create_job(name, template):
    kind, source = template.split("/")
    job = thing(kind, source)["spec"]["jobTemplate"]
    keep({"kind": "Job", "metadata": {"name": name}, **job})
    start(name, job["spec"]["template"]["spec"])
    print(f"job/{name} created")


def wait_complete(what):
    pod = HOME / "pods" / what.split("/")[1]
    code = until(f"the end of {what}", lambda: (pod / "ended").exists() and (pod / "ended").read_text())
    print(f"{what} condition met") if code == "0" else fail(f"{what} ended with {code}:\n{(pod / 'log').read_text()}")


def scale(what, count):
    found = thing(*what.split("/"))
    found["spec"]["replicas"] = int(count)
    keep(found)
    settle(found)


def kubectl(words):
    if words[:2] == ["-n", "elastic"]:
        words = words[2:]
    text = " ".join(words)
    forms = [
        (r"create namespace (\S+)", lambda name: keep({"kind": "Namespace", "metadata": {"name": name}})),
        (r"apply -f (\S+)", lambda path: apply(pathlib.Path(path).read_text())),
        (r"apply -k (\S+)", lambda path: apply(subprocess.run([REAL_KUBECTL, "kustomize", path], check=True, text=True, stdout=subprocess.PIPE).stdout)),
        (r"rollout status (\S+/\S+)", rollout_status),
        (r"port-forward (\S+/\S+) ([\d: ]+)", lambda what, ports: port_forward(what, *ports.split())),
        (r"set env (cronjob/\S+) (\S+)", set_env),
        (r"create secret generic (\S+) ((?:--from-literal=\S+ ?)+)", create_secret),
        (r"create job (\S+) --from=(\S+)", create_job),
        (r"wait --for=condition=complete (job/\S+) --timeout=\d+s", wait_complete),
        (r"logs (job/\S+)", lambda what: print((HOME / "pods" / what.split("/")[1] / "log").read_text())),
        (r"scale (deployment/\S+) --replicas (\d+)", scale),
    ]
    for form, act in forms:
        if found := re.fullmatch(form, text):
            return act(*found.groups())
    fail(f"kubectl {text}: not known here")


def kind(words):
    if words == ["create", "cluster"]:
        for folder in ("things", "pods", "claims"):
            (HOME / folder).mkdir(parents=True)
        (HOME / "hosts").write_text("127.0.0.1 localhost\n")
        os.makedirs("/run/netns", exist_ok=True)
        sh("mount", "-t", "tmpfs", "none", "/run/netns")
        sh("ip", "link", "set", "lo", "up")
        sh("ip", "link", "add", "pods", "type", "bridge")
        sh("ip", "addr", "add", "10.244.0.1/24", "dev", "pods")
        sh("ip", "link", "set", "pods", "up")
    elif words == ["delete", "cluster"]:
        [os.kill(int(pod.read_text()), signal.SIGKILL) for pod in HOME.glob("pods/*/kubelet") if not pod.with_name("ended").exists()]
    elif words[:2] != ["load", "docker-image"]:
        fail(f"kind {' '.join(words)}: not known here")


def docker(words):
    if words[:1] != ["build"] or not pathlib.Path(words[words.index("-f") + 1]).exists():
        fail(f"docker {' '.join(words)}: not known here")


{"kubectl": kubectl, "kind": kind, "docker": docker}[sys.argv[1]](sys.argv[2:])
