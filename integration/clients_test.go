package integration

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// An errandAbroad is what a program that people use does over the network, and how
// it ends.
type errandAbroad struct {
	name    string
	script  string
	says    string // somewhere in what it says
	fails   bool
	verdict string // allow, with end after it; or refuse
	host    string
	port    int
	program string // whose connection it was, as the audit log tells
}

const pipelined = `
import re, socket
s = socket.create_connection(("site.good.example", 80))
get = "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Debian APT-HTTP/1.3\r\n\r\n"
s.sendall((get % ("/", "site.good.example") + get % ("/InRelease", "site.good.example") + get % ("/", "SITE.good.example.") + get % ("/", "evil.example")).encode())
said = b""
while b"</html>" not in said and b"request" not in said:
    more = s.recv(65536)
    if not more: break
    said += more
print([status.decode() for status in re.findall(rb"HTTP/1.1 (...)", said)])
`

const keptAlive = `
import http.client
c = http.client.HTTPSConnection("app.good.example")
for path in ("/", "/again"):
    c.request("GET", path); r = c.getresponse(); print(r.status, r.read().decode().strip())
`

const fetched = `
(async () => { for (const url of process.argv.slice(1)) {
	try { const r = await fetch(url); console.log(r.status, (await r.text()).trim()); }
	catch (e) { console.log("failed:", e.cause ? e.cause.code + " " + e.cause.message : e); process.exitCode = 1; }
} })()`

const (
	python3 = "/usr/bin/python3.11"
	psql    = "/usr/lib/postgresql/15/bin/psql"
	gitHTTP = "/usr/lib/git-core/git-remote-http"
	sshGit  = `GIT_SSH_COMMAND="ssh -i /opt/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR" `
)

var errandsAbroad = []errandAbroad{
	{"curl", "curl -sS https://app.good.example/", "hello from app", false, "allow", "app.good.example", 443, "/usr/bin/curl"},
	{"curl of plain HTTP", "curl -sS http://site.good.example/", "hello from site", false, "allow", "site.good.example", 80, "/usr/bin/curl"},
	{"curl, refused", "curl -sS https://evil.example/", "access denied", true, "refuse", "evil.example", 443, "/usr/bin/curl"},
	{"curl of plain HTTP, refused", "curl -sS http://evil.example/", "not-listed", false, "refuse", "evil.example", 80, "/usr/bin/curl"},
	{"curl, sent on to another host", "curl -sSL http://site.good.example/away", "not-listed", false, "refuse", "away.evil.example", 80, "/usr/bin/curl"},
	{"git over https", "cd; rm -rf a; git clone -q https://app.good.example/repo.git a; git -C a log --format=%s", "the first commit", false, "allow", "app.good.example", 443, gitHTTP},
	{"git over https, refused", "cd; git clone -q https://evil.example/repo.git b", "fatal: unable to access", true, "refuse", "evil.example", 443, gitHTTP},
	{"git over ssh", "cd; rm -rf c; " + sshGit + "git clone -q ssh://agent@git.good.example/srv/repo.git c; git -C c log --format=%s", "the first commit", false, "allow", "git.good.example", 22, "/usr/bin/ssh"},
	{"git over ssh, refused", "cd; " + sshGit + "git clone -q ssh://agent@evil.example/srv/repo.git d", "onnection reset by", true, "refuse", "evil.example", 22, "/usr/bin/ssh"},
	{"psql", `psql -XAt "host=db.good.example user=agent dbname=postgres sslmode=verify-full sslrootcert=/opt/ca.pem" -c "select 40 + 2"`, "42", false, "allow", "db.good.example", 5432, psql},
	{"psql without TLS", `psql -XAt "host=db.good.example user=agent dbname=postgres sslmode=disable" -c "select 40 + 2"`, "42", false, "allow", "db.good.example", 5432, psql},
	{"psql, refused", `psql -XAt "host=evil.example user=agent dbname=postgres" -c "select 40 + 2"`, "server closed the connection unexpectedly|onnection reset by peer", true, "refuse", "evil.example", 5432, psql},
	{"redis-cli", "redis-cli -h cache.good.example set k kept; redis-cli -h cache.good.example get k", "kept", false, "allow", "cache.good.example", 6379, "/usr/bin/redis-cli"},
	{"redis-cli, refused", "redis-cli -h evil.example get k", "onnection reset by peer|closed the connection", true, "refuse", "evil.example", 6379, "/usr/bin/redis-cli"},
	{"python's urllib", `python3 -c 'import urllib.request as u; print(u.urlopen("https://app.good.example/").read().decode())'`, "hello from app", false, "allow", "app.good.example", 443, python3},
	{"python's urllib, refused", `python3 -c 'import urllib.request as u; u.urlopen("https://evil.example/")'`, "ACCESS_DENIED|access denied", true, "refuse", "evil.example", 443, python3},
	{"python's urllib of plain HTTP, refused", `python3 -c 'import urllib.request as u; u.urlopen("http://evil.example/")'`, "HTTP Error 403", true, "refuse", "evil.example", 80, python3},
	{"python's http.client, kept alive", "python3 -c '" + keptAlive + "'", "200 hello from app\n200 hello from app", false, "allow", "app.good.example", 443, python3},
	{"pipelined as apt does", "python3 -c '" + pipelined + "'", "['200', '200', '200', '403']", false, "allow", "site.good.example", 80, python3},
	{"node's fetch", "node -e '" + fetched + "' https://app.good.example/ http://site.good.example/", "200 hello from app\n200 hello from site", false, "allow", "app.good.example", 443, "/usr/bin/node"},
	{"node's fetch, refused", "node -e '" + fetched + "' https://evil.example/", "ACCESS_DENIED|access denied", true, "refuse", "evil.example", 443, "/usr/bin/node"},
	{"Go's HTTP/2", "client h2 https://app.good.example/", "HTTP/2.0 200 hello from app", false, "allow", "app.good.example", 443, "/usr/bin/client"},
	{"Go's HTTP/2, refused", "client h2 https://evil.example/", "tls: access denied", true, "refuse", "evil.example", 443, "/usr/bin/client"},
	{"gRPC", "client grpc https://app.good.example", "one\ntwo\nthree\n", false, "allow", "app.good.example", 443, "/usr/bin/client"},
	{"gRPC, refused", "client grpc https://evil.example", "tls: access denied", true, "refuse", "evil.example", 443, "/usr/bin/client"},
	{"a WebSocket", "client ws wss://app.good.example/ws", "one\ntwo\nthree\n", false, "allow", "app.good.example", 443, "/usr/bin/client"},
	{"a WebSocket in plain HTTP", "client ws ws://site.good.example/ws", "one\ntwo\nthree\n", false, "allow", "site.good.example", 80, "/usr/bin/client"},
	{"a WebSocket, refused", "client ws ws://evil.example/ws", "bad status", true, "refuse", "evil.example", 80, "/usr/bin/client"},
}

// Programs that people use do their work through a sandbox with the hosts that
// it may reach; with others they fail, say so, and do not hang. The log tells of
// each with its host, its port and its program.
func TestClients(t *testing.T) {
	e := newEarth(t)
	e.serveSites()
	servers := e.servers()

	b := newBox(t)
	b.pod = true // what is left over is looked for when the servers end
	b.patience = time.Minute
	b.debian()
	b.installClient()
	key, err := os.ReadFile(filepath.Join(servers.rootfs(), "srv/key"))
	b.must(err)
	b.lay(map[string]string{"opt/ca.pem": string(e.CA()), "opt/key": string(key)})
	b.must(os.Chmod(filepath.Join(b.rootfs(), "opt/key"), 0o600))
	b.policy(e.policy(e.Uplink(), "app.good.example 443", "site.good.example 80", "git.good.example 22", "db.good.example 5432", "cache.good.example 6379"))
	b.spec.Process.Args = []string{"/bin/sleep", "1000"}
	b.spec.Process.Env = []string{"PATH=" + usualPath, "CURL_CA_BUNDLE=/opt/ca.pem", "GIT_SSL_CAINFO=/opt/ca.pem", "SSL_CERT_FILE=/opt/ca.pem", "NODE_EXTRA_CA_CERTS=/opt/ca.pem"}
	defer b.up().end()

	for _, c := range errandsAbroad {
		t.Run(c.name, func(t *testing.T) {
			before := len(b.audit())
			got := b.execute(b.id, "/bin/sh", "-ec", "PATH=$PATH:/usr/lib/postgresql/15/bin; "+c.script)
			said := func(words string) bool { return strings.Contains(got.stdout+got.stderr, words) }
			if (got.code != 0) != c.fails || !slices.ContainsFunc(strings.Split(c.says, "|"), said) {
				t.Errorf("%s: want %q, failing: %t", got, c.says, c.fails)
			}
			b.t = t
			b.awaitClient(before, c)
		})
	}
	b.t = t
	e.explain(b)
	for _, name := range e.servedNow() {
		if strings.Contains(name, "evil") {
			t.Errorf("%s was reached", name)
		}
	}
}

// awaitClient waits for the line of an errand, later than so many others.
func (b *box) awaitClient(before int, c errandAbroad) {
	b.t.Helper()
	seen := 0
	b.awaitLine(fmt.Sprintf("%s %s:%d by %s", c.verdict, c.host, c.port, c.program), func(text json.RawMessage) bool {
		if seen++; seen <= before {
			return false
		}
		var l line
		var who struct {
			Actor struct {
				Process struct{ File struct{ Path string } }
			}
		}
		b.must(json.Unmarshal(text, &l))
		b.must(json.Unmarshal(text, &who))
		return l.More.Verdict == c.verdict && l.Dst.Hostname == c.host && l.Dst.Port == c.port && who.Actor.Process.File.Path == c.program
	})
}

// installClient puts the Go client into the box's image.
func (b *box) installClient() {
	b.t.Helper()
	build := exec.Command("go", "build", "-o", filepath.Join(b.rootfs(), "usr/bin/client"), "./client")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.t.Fatalf("cannot build the client: %v: %s", err, out)
	}
}

// serveSites adds the hosts that Go serves.
func (e *earth) serveSites() {
	e.t.Helper()
	site, app := http.NewServeMux(), http.NewServeMux()
	for name, mux := range map[string]*http.ServeMux{"site": site, "app": app} {
		mux.HandleFunc("/", func(out http.ResponseWriter, _ *http.Request) { fmt.Fprintln(out, "hello from", name) })
		mux.Handle("/ws", websocket.Handler(func(c *websocket.Conn) { io.Copy(c, c) }))
	}
	site.HandleFunc("/away", func(out http.ResponseWriter, r *http.Request) {
		http.Redirect(out, r, "http://away.evil.example/", http.StatusFound)
	})
	app.HandleFunc("/test.Echo/Stream", echoMessages)
	repo := filepath.Join(e.t.TempDir(), "git")
	e.must(makeRepository(repo))
	app.Handle("/repo.git/", http.StripPrefix("/repo.git", http.FileServer(http.Dir(repo))))
	var err error
	e.addr["site.good.example"], err = e.ServeHTTP("site.good.example", site)
	e.must(err)
	e.addr["app.good.example"], err = e.ServeHTTPS("app.good.example", app)
	e.must(err)
}

// echoMessages answers a gRPC stream with what it says.
func echoMessages(out http.ResponseWriter, r *http.Request) {
	out.Header().Set("Content-Type", "application/grpc")
	out.Header().Set("Trailer", "Grpc-Status")
	flush := http.NewResponseController(out).Flush
	_ = flush()
	for {
		var head [5]byte
		if _, err := io.ReadFull(r.Body, head[:]); err != nil {
			break
		}
		text := make([]byte, min(binary.BigEndian.Uint32(head[1:]), 64))
		if _, err := io.ReadFull(r.Body, text); err != nil {
			break
		}
		_, _ = out.Write(append(head[:], text...))
		_ = flush()
	}
	out.Header().Set("Grpc-Status", "0")
}

// makeRepository makes a bare git repository with one commit, as a static web
// server may serve it.
func makeRepository(dir string) error {
	work := dir + ".work"
	for _, args := range [][]string{
		{"init", "-q", work}, {"-C", work, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "the first commit"},
		{"clone", "-q", "--bare", work, dir}, {"-C", dir, "update-server-info"},
	} {
		if out, err := exec.Command("git", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("git %q: %w: %s", args, err, out)
		}
	}
	return nil
}

// serveDebian runs Debian's sshd, PostgreSQL and redis.
const serveDebian = `
mkdir -p /srv/pg /run/sshd /run/postgresql
cp -r /opt/git /srv/repo.git; chown -R agent:agent /srv/repo.git /srv/pg
ssh-keygen -q -t ed25519 -N "" -f /srv/host; ssh-keygen -q -t ed25519 -N "" -f /srv/key; cp /srv/key.pub /srv/authorized
/usr/sbin/sshd -f /dev/null -h /srv/host -o UsePAM=no -o StrictModes=no -o AuthorizedKeysFile=/srv/authorized -o ListenAddress=$GIT
redis-server --bind $CACHE --save "" --protected-mode no >/dev/null &
cp /opt/tls.* /srv/pg/; chown agent /srv/pg/tls.*; chmod 600 /srv/pg/tls.key
chroot --userspec=agent:agent / /bin/sh -ec '
	cd /srv/pg; bin=/usr/lib/postgresql/15/bin
	$bin/initdb --pgdata=data --auth=trust --no-sync --no-locale >/dev/null
	echo "host all all all trust" >>data/pg_hba.conf
	exec $bin/postgres -D data -c listen_addresses=$DB -c unix_socket_directories= -c ssl=on -c ssl_cert_file=/srv/pg/tls.pem -c ssl_key_file=/srv/pg/tls.key -c fsync=off
'
`

// servers is a Debian under runc, among the world's hosts, that serves git over
// ssh, PostgreSQL and redis.
func (e *earth) servers() *box {
	e.t.Helper()
	path, err := runc()
	if err != nil {
		lacking(e.t, "%v", err)
	}
	b := newBox(e.t)
	b.runtime = path
	b.debian()
	b.netns(e.Internet())
	env := []string{"PATH=" + usualPath}
	listening := map[string]netip.AddrPort{}
	for name, port := range map[string]uint16{"git": 22, "db": 5432, "cache": 6379} {
		addr, err := e.Host(name + ".good.example")
		e.must(err)
		e.addr[name+".good.example"] = addr
		env = append(env, strings.ToUpper(name)+"="+addr.String())
		listening[name] = netip.AddrPortFrom(addr, port)
	}
	cert, key, err := e.CertificatePEM("db.good.example")
	e.must(err)
	b.lay(map[string]string{"opt/tls.pem": string(cert), "opt/tls.key": string(key),
		"etc/passwd": "root:x:0:0::/root:/bin/bash\nagent:x:1000:1000::/home/agent:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"})
	e.must(makeRepository(filepath.Join(b.rootfs(), "opt/git")))
	b.spec.Process.Args, b.spec.Process.Env = []string{"/bin/sh", "-ec", serveDebian}, env
	k := b.up()
	for name, at := range listening {
		waitFor(e.t, func() bool {
			c, err := e.Dial(at)
			if err == nil {
				c.Close()
			} else if said := k.stderr(); strings.Contains(said, "rror") {
				e.t.Fatalf("%s does not serve: %s", name, said)
			}
			return err == nil
		})
	}
	return b
}
