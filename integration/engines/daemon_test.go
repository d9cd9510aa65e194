package engines

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nemoclaw/integration/world"
)

// The hosts of the world. The policy lists all but unlisted.
const (
	listed   = "git.good.example" // HTTPS: /hello, /repo.git
	plain    = "www.good.example" // HTTP: /hello
	unlisted = "evil.example"     // HTTPS, as real as the others
	later    = "later.example"    // HTTP; listed by and by
)

// theirs is the answer of every server that a sandbox may reach, and of none
// that it may not.
const theirs = "hello from the world\n"

const policy = `version: 1
egress:
  rules:
    - {host: git.good.example, port: 443, allow_private: [203.0.113.0/24]}
    - {host: www.good.example, port: 80, allow_private: [203.0.113.0/24]}
`

// bridge is the throw-away host as its containers see it.
const bridge = "172.30.0.1"

// engine is a running dockerd.
type engine struct {
	name  string // "docker", or one that is a second on this host
	cmd   *exec.Cmd
	env   []string
	log   *tail
	ended chan error
}

var (
	dockerd *engine
	outer   *world.World
)

// inside runs the tests, in the throw-away host.
func inside(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "cannot prepare the throw-away host:", err)
		return 1
	}
	var err error
	if outer, err = newWorld(); err != nil {
		return fail(err)
	}
	defer outer.Close()
	if err := configure(); err != nil {
		return fail(err)
	}
	if dockerd, err = startDocker("docker", nil); err != nil {
		return fail(err)
	}
	code := 1
	if err := dockerd.load("busybox", "debian"); err != nil {
		fail(err)
	} else {
		code = m.Run()
	}
	if err := dockerd.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot stop dockerd:", err)
		code = max(code, 1)
	}
	if left := leftovers(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind by the tests:\n  %s\n", strings.Join(left, "\n  "))
		code = max(code, 1)
	}
	return code
}

// newWorld connects this host to a world with the servers above.
func newWorld() (*world.World, error) {
	w, err := world.NewHere()
	if err != nil {
		return nil, err
	}
	repo, err := makeRepository(os.Getenv(scratchEnv))
	if err != nil {
		return nil, err
	}
	pages := http.NewServeMux()
	pages.HandleFunc("/hello", func(out http.ResponseWriter, _ *http.Request) { io.WriteString(out, theirs) })
	pages.Handle("/repo.git/", http.StripPrefix("/repo.git/", http.FileServer(http.Dir(repo))))
	if _, err := w.ServeHTTPS(listed, pages); err != nil {
		return nil, err
	}
	if _, err := w.ServeHTTPS(unlisted, pages); err != nil {
		return nil, err
	}
	for _, name := range []string{plain, later} {
		if _, err := w.ServeHTTP(name, pages); err != nil {
			return nil, err
		}
	}
	lan, err := w.Listen(world.Neighbour, 80)
	if err != nil {
		return nil, err
	}
	go greet(lan)
	return w, nil
}

// greet serves a page until l is closed.
func greet(l net.Listener) {
	_ = http.Serve(l, http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) { io.WriteString(out, theirs) }))
}

// makeRepository makes a bare repository that plain files over HTTP serve.
func makeRepository(dir string) (string, error) {
	bare, work := filepath.Join(dir, "repo.git"), filepath.Join(dir, "work")
	identity := []string{"-c", "user.name=world", "-c", "user.email=world@good.example", "-c", "init.defaultBranch=main"}
	for _, args := range [][]string{
		{"init", "-q", work},
		{"-C", work, "commit", "-q", "--allow-empty", "-m", "a commit of the world's"},
		{"clone", "-q", "--bare", work, bare},
		{"-C", bare, "update-server-info"},
	} {
		if err := run("git", append(identity, args...)...); err != nil {
			return "", err
		}
	}
	return bare, nil
}

// configure writes this host's /etc.
func configure() error {
	if err := os.RemoveAll("/etc/resolv.conf"); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"/etc/nemoclaw/policy.yaml":        policy,
		"/etc/nemoclaw/policies/deaf.yaml": policy + "network: {ingress: none}\n",
		"/etc/resolv.conf":                 "nameserver " + world.Nameserver.String() + "\n",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// settings is dockerd's configuration file, with more added to it.
func settings(more map[string]any) ([]byte, error) {
	nemoclaw := filepath.Join(installed(), "nemoclaw")
	s := map[string]any{
		"runtimes": map[string]any{
			"nemoclaw":        map[string]any{"path": nemoclaw},
			"nemoclaw-deaf":   map[string]any{"path": nemoclaw, "runtimeArgs": []string{"--policy=deaf"}},
			"nemoclaw-absent": map[string]any{"path": nemoclaw, "runtimeArgs": []string{"--policy=absent"}},
			"nemoclaw-live":   map[string]any{"path": nemoclaw, "runtimeArgs": []string{"--policy=live"}},
		},
		"bip":           bridge + "/24",
		"cgroup-parent": "/" + os.Getenv(cgroupEnv),
	}
	maps.Copy(s, more)
	return json.MarshalIndent(s, "", "  ")
}

// startDocker starts a dockerd with more in its configuration than usual, and
// returns once it serves.
func startDocker(name string, more map[string]any) (*engine, error) {
	c := cache(os.Getenv(cacheEnv))
	libraries, err := c.libraries()
	if err != nil {
		return nil, err
	}
	extensions, err := c.extensions()
	if err != nil {
		return nil, err
	}
	config, err := settings(more)
	if err != nil {
		return nil, err
	}
	file := "/etc/" + name + ".json"
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return nil, err
	}
	run := "/run/" + name
	e := &engine{name: name, log: new(tail), ended: make(chan error, 1), env: []string{
		"PATH=" + installed() + ":" + c.path(), "LD_LIBRARY_PATH=" + libraries, "XTABLES_LIBDIR=" + extensions,
		"HOME=" + filepath.Join(os.Getenv(scratchEnv), "home"), "TMPDIR=" + os.Getenv(scratchEnv), "DOCKER_HOST=unix://" + run + ".sock",
	}}
	e.cmd = exec.Command(filepath.Join(c.engine(), "usr/sbin/dockerd"), "--config-file="+file, "--host=unix://"+run+".sock", "--exec-root="+run, "--pidfile="+run+".pid")
	e.cmd.Env = e.env
	logs, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	e.cmd.Stdout, e.cmd.Stderr = w, w
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	w.Close()
	serving := make(chan struct{})
	go e.follow(logs, serving)
	select {
	case <-serving:
	case err := <-e.ended:
		return nil, fmt.Errorf("dockerd ended: %v\n%s", err, e.log)
	}
	return e, nil
}

// load makes images called as their layers' files are: busybox, debian.
func (e *engine) load(images ...string) error {
	for _, name := range images {
		layer := filepath.Join(os.Getenv(cacheEnv), name+".tar")
		if err := quietly(e.client("import", "-c", `CMD ["sh"]`, layer, name)); err != nil {
			return fmt.Errorf("cannot make the image %s: %w", name, err)
		}
	}
	return nil
}

// follow keeps dockerd's log and notices when it serves.
func (e *engine) follow(logs io.Reader, serving chan<- struct{}) {
	for s := bufio.NewScanner(logs); s.Scan(); {
		e.log.add(s.Text())
		if strings.Contains(s.Text(), "API listen on") && serving != nil {
			close(serving)
			serving = nil
		}
	}
	e.ended <- e.cmd.Wait()
}

func (e *engine) stop() error {
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := <-e.ended
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%w\n%s", err, e.log)
	}
	return err
}

// client is the docker command.
func (e *engine) client(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(os.Getenv(cacheEnv), "engine/usr/bin/docker"), args...)
	cmd.Env = e.env
	return cmd
}

// said is how a docker command ended.
type said struct {
	out, err string
	code     int
}

func (s said) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", s.code, s.out, s.err)
}

// docker runs a docker command to its end.
func docker(t testing.TB, args ...string) said {
	t.Helper()
	if dockerd == nil {
		t.Skip("a real engine: make test-engines, or NEMOCLAW_ENGINES=1")
	}
	return dockerd.docker(t, args...)
}

func (e *engine) docker(t testing.TB, args ...string) said {
	t.Helper()
	cmd := e.client(args...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	failed := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](failed); failed != nil && !exited {
		t.Fatal(failed)
	}
	return said{out.String(), err.String(), cmd.ProcessState.ExitCode()}
}

// must is docker for what has to succeed; it returns what was printed, without
// the last line feed.
func must(t testing.TB, args ...string) string {
	t.Helper()
	s := docker(t, args...)
	if s.code != 0 {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), s)
	}
	return strings.TrimSuffix(s.out, "\n")
}

// tail is the end of a log.
type tail struct{ lines []string }

func (l *tail) add(line string) {
	l.lines = append(l.lines, line)
	if len(l.lines) > 30 {
		l.lines = l.lines[1:]
	}
}

func (l *tail) String() string { return strings.Join(l.lines, "\n") }
