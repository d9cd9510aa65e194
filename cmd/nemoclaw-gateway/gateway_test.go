package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/hooks"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// TestMain lets this binary be the gateway that the tests start, and a program
// in a sandbox.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "monitor" || os.Args[1] == "worker") {
		main()
	}
	if len(os.Args) == 2 && os.Args[1] == "init" {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "connect" {
		os.Exit(refused(os.Args[2]))
	}
	if len(os.Args) > 1 && os.Args[1] == "taken" {
		takenOver(os.Args[2], os.Args[3], os.Args[4])
	}
	os.Exit(m.Run())
}

// refused is 0 if a connection to addr ends without a byte, and 1 if it does
// not.
func refused(addr string) int {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return 0 // at once
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); n > 0 || os.IsTimeout(err) {
		return 1
	}
	return 0
}

const policySource = `egress:
  rules:
    - host: api.example.org
      port: 443
`

// box is the container of it.
var box = control.Box{ID: "web", Root: "/run/engine"}

// gateway is a real one, for a namespace of the test's.
type gateway struct {
	*testing.T
	dir   string
	log   string
	inner *os.File
	init  *exec.Cmd
	stdin io.Closer
}

func start(t *testing.T) *gateway {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("root is needed")
		}
		t.Skip("root is needed to make network namespaces")
	}
	g := &gateway{T: t, dir: t.TempDir()}
	g.log = filepath.Join(g.dir, "web.jsonl")
	file := filepath.Join(g.dir, "policy.yaml")
	g.must(os.WriteFile(file, []byte(policySource), 0o644))
	inner, err := hooks.NewNetns()
	g.must(err)
	g.inner = inner
	t.Cleanup(func() { inner.Close() })
	self, err := os.Executable()
	g.must(err)
	t.Cleanup(func() {
		if err := hooks.Leave(g.dir, box); err != nil {
			t.Error(err)
		}
	})
	brought, err := hooks.Bring(inner, hooks.Plan{Dir: g.dir, Program: self, Uplink: "auto", Attach: control.Attach{
		ID: "web", Root: "/run/engine", PolicyName: "default", PolicyFile: file, Policy: []byte(policySource), AuditLog: g.log,
	}})
	g.must(err)
	g.init = exec.Command(self, "init")
	stdin, err := g.init.StdinPipe()
	g.must(err)
	g.stdin = stdin
	g.must(hooks.In(inner, g.init.Start))
	t.Cleanup(func() { stdin.Close(); g.init.Wait() })
	pidfd, err := unix.PidfdOpen(g.init.Process.Pid, 0)
	g.must(err)
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	ruleset, err := os.Open("/dev/null") // it is only kept and handed out
	g.must(err)
	defer ruleset.Close()
	g.must(brought.Commit(g.init.Process.Pid, f, ruleset, nil))
	links, err := hooks.Connect(g.dir, inner, "auto", "all")
	g.must(err)
	g.must(hooks.Release(self, g.dir, inner, "auto", links))
	return g
}

func (g *gateway) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func (g *gateway) monitor() int {
	g.Helper()
	m, err := control.ReadMonitor(control.Gateway(g.dir))
	g.must(err)
	return m.PID
}

// worker is the only child of the monitor.
func (g *gateway) worker() string {
	g.Helper()
	pids := g.children()
	if len(pids) != 1 {
		g.Fatalf("the monitor has the children %v", pids)
	}
	return pids[0]
}

// children are those of the monitor, whichever of its threads started them.
func (g *gateway) children() (pids []string) {
	g.Helper()
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", g.monitor()))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}

// A gateway from its start to its end: what it holds, what it is confined to,
// what it answers, and that nothing of it stays.
func TestGateway(t *testing.T) {
	g := start(t)

	// The monitor has let go of whoever started it.
	proc := fmt.Sprintf("/proc/%d", g.monitor())
	for fd := range conversation {
		if link, _ := os.Readlink(fmt.Sprintf("%s/fd/%d", proc, fd)); link != "/dev/null" {
			t.Errorf("descriptor %d of the monitor is %s", fd, link)
		}
	}
	if cwd, _ := os.Readlink(proc + "/cwd"); cwd != "/" {
		t.Errorf("the monitor stands in %s", cwd)
	}

	// A connection that there is no way out for is refused. It starts the worker.
	if n := len(g.children()); n != 0 {
		t.Errorf("before the first connection the monitor has %d children", n)
	}
	program := exec.Command("/proc/self/exe", "connect", "192.0.2.1:25")
	program.Stderr = os.Stderr
	g.must(hooks.In(g.inner, program.Start))
	if err := program.Wait(); err != nil {
		t.Error("a connection without an uplink was not refused")
	}

	// The worker has given everything up.
	status, err := os.ReadFile("/proc/" + g.worker() + "/status")
	g.must(err)
	for field, want := range map[string]string{
		"Uid": "65534 65534 65534 65534", "Gid": "65534 65534 65534 65534", "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := statusField(status, field); got != want {
			t.Errorf("the worker's %s is %q, want %q", field, got, want)
		}
	}
	if env, _ := os.ReadFile("/proc/" + g.worker() + "/environ"); len(env) > 0 {
		t.Errorf("the worker has an environment: %q", env)
	}

	for _, pid := range []string{strconv.Itoa(g.monitor()), g.worker()} {
		g.isUnhurried(pid)
	}

	// exec gets the ruleset that commit handed in.
	ruleset, err := hooks.Ruleset(g.dir, box)
	g.must(err)
	defer ruleset.Close()
	if fi, err := ruleset.Stat(); err != nil || fi.Name() == "" || fi.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("the ruleset came back as %v %v", fi, err)
	}

	// init's end is the gateway's.
	pidfd, err := unix.PidfdOpen(g.monitor(), 0)
	g.must(err)
	defer unix.Close(pidfd)
	worker := g.worker()
	g.stdin.Close()
	g.init.Wait()
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
		t.Fatal("the monitor outlives init")
	}
	if _, err := os.Stat("/proc/" + worker + "/exe"); err == nil {
		t.Error("the worker outlives its monitor")
	}
	log, err := os.ReadFile(g.log)
	g.must(err)
	if !bytes.Contains(log, []byte(`"reason":"no-uplink"`)) || !bytes.Contains(log, fmt.Appendf(nil, `"pid":%d,`, program.Process.Pid)) {
		t.Errorf("the log does not tell of the refusal and its process:\n%s", log)
	}
	rep, err := audit.VerifyFile(g.log)
	g.must(err)
	if len(rep.Faults) > 0 || rep.Open {
		t.Errorf("the log: %+v", rep)
	}
}

// isUnhurried looks at every thread, those that were started later too.
func (g *gateway) isUnhurried(pid string) {
	g.Helper()
	threads, err := os.ReadDir("/proc/" + pid + "/task")
	g.must(err)
	for _, t := range threads {
		slack, err := os.ReadFile("/proc/" + t.Name() + "/timerslack_ns")
		g.must(err)
		if string(slack) != "1000000\n" {
			g.Errorf("thread %s of %s has a timer slack of %s ns", t.Name(), pid, bytes.TrimSpace(slack))
		}
	}
}

func statusField(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	return "(missing)"
}

// delete ends a gateway whose init still lives, and the chain is closed.
func TestStop(t *testing.T) {
	g := start(t)
	g.must(hooks.Leave(g.dir, box))
	rep, err := audit.VerifyFile(g.log)
	g.must(err)
	if len(rep.Faults) > 0 || rep.Open {
		t.Errorf("the log: %+v", rep)
	}
}

// A wrong command line is told, with what is right.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		out  string
		err  string
	}{
		{[]string{"--version"}, exitOK, "nemoclaw-gateway", ""},
		{[]string{"--help"}, exitOK, "monitor DIR", ""},
		{nil, exitUsage, "", "there is no command"},
		{[]string{"serve"}, exitUsage, "", `there is no command "serve"`},
		{[]string{"monitor"}, exitUsage, "", `there is no command "monitor"`},
		{[]string{"--bogus"}, exitUsage, "", "bogus"},
	} {
		var out, errs bytes.Buffer
		if code := run(c.args, &out, &errs); code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.err) {
			t.Errorf("%q gives %d, %q, %q", c.args, code, out.String(), errs.String())
		}
	}
}
