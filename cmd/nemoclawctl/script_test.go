package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/monitor"
)

var update = flag.Bool("update", false, "rewrite the golden files inside testdata/*.txtar")

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "worker":
		worker()
		return
	case len(os.Args) == 2 && os.Args[1] == "init":
		io.Copy(io.Discard, os.Stdin)
		return
	}
	testscript.Main(m, map[string]func(){
		"nemoclawctl": func() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) },
	})
}

func TestScript(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("root is needed to make network namespaces")
		}
		t.Skip("root is needed to make network namespaces")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("NEMOCLAW_CONFIG", filepath.Join(env.WorkDir, "config.yaml"))
			config := fmt.Sprintf("run_dir: %[1]s/run\nlog_dir: %[1]s/log\npolicy: %[1]s/etc/policy.yaml\n", env.WorkDir)
			return os.WriteFile(filepath.Join(env.WorkDir, "config.yaml"), []byte(config), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sandbox": startSandbox,
			"await":   awaitLine,
			"ends":    endSandbox,
		},
	})
}

// worker puts every policy into force, and had refused www.example.org before.
func worker() {
	conn, err := control.FromFile(os.NewFile(3, "monitor"))
	if err != nil {
		panic(err)
	}
	for told := false; ; {
		var msg control.ToWorker
		files, err := conn.Recv(&msg)
		if err != nil {
			return
		}
		control.CloseAll(files)
		if msg.Rules == nil {
			continue
		}
		if !told {
			told = true
			conn.Send(control.ToMonitorFromWorker{Records: &control.Records{N: 1, List: []control.Record{{
				Verdict: control.Refuse, Proto: "tls", Host: "www.example.org", Port: 443, Reason: "not-listed", Request: "r1", Generation: 1,
				Detail: "SNI \"cu\x1b[2Jrl\u202e\"",
			}}}})
		}
		conn.Send(control.ToMonitorFromWorker{Applied: &control.Applied{Generation: msg.Rules.Generation}})
	}
}

// startSandbox is "sandbox ID POLICYFILE", or "sandbox ID built-in": one with a
// real monitor, which ends with the script.
func startSandbox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sandbox ID POLICYFILE|built-in")
	}
	id, root := args[0], ts.MkAbs("root")
	dir := control.Dir(ts.MkAbs("run"), root, id)
	gateway := dir + ".net"
	ts.Check(os.MkdirAll(dir, 0o700))
	ts.Check(os.Mkdir(gateway, 0o700))
	ts.Check(os.Symlink(gateway, control.Gateway(dir)))
	attach := control.Attach{ID: id, Root: root, PolicyName: "built-in", Policy: []byte("egress:\n  rules: []\n"), AuditLog: ts.MkAbs("log/" + id + ".jsonl")}
	if args[1] != "built-in" {
		attach.PolicyName, attach.PolicyFile = "default", ts.MkAbs(args[1])
		attach.Policy = []byte(ts.ReadFile(args[1]))
	}
	inner, uplink := newNetns(ts), newNetns(ts)
	init := exec.Command("/proc/self/exe", "init")
	stdin, err := init.StdinPipe()
	ts.Check(err)
	ts.Check(init.Start())
	start, err := control.StartTime(init.Process.Pid)
	ts.Check(err)
	ts.Check(control.WriteSandbox(dir, &control.Sandbox{
		ID: id, Root: root, Created: time.Now(), Status: "started", InitPID: init.Process.Pid, InitStart: start,
		PolicyName: attach.PolicyName, PolicyFile: attach.PolicyFile, Policy: string(attach.Policy), AuditLog: attach.AuditLog,
	}))
	ours, theirs, err := control.Pair()
	ts.Check(err)
	conn, err := control.FromFile(theirs)
	ts.Check(err)
	m := &monitor.Monitor{Dir: gateway, Worker: []string{"/proc/self/exe", "worker"}, Listen: listen}
	ended := make(chan error, 1)
	go func() { ended <- m.Run(context.Background(), conn, nil) }()
	ends.Store(dir, stdin)
	ts.Defer(func() {
		stdin.Close()
		ends.Delete(dir)
		init.Wait()
		ours.Close()
		<-ended
	})
	ask(ts, ours, control.ToMonitor{Attach: &attach}, inner, uplink)
	pidfd, err := unix.PidfdOpen(init.Process.Pid, 0)
	ts.Check(err)
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	ask(ts, ours, control.ToMonitor{Commit: &control.Commit{InitPID: init.Process.Pid}}, f)
	runtime, err := control.DialRuntime(gateway)
	ts.Check(err)
	defer runtime.Close()
	ask(ts, runtime, control.ToMonitor{Started: &control.Started{Links: []string{"eth0"}}})
}

// ends are what keeps the first processes of sandboxes alive, by their state
// directories.
var ends sync.Map

// endSandbox is "ends ID": its first process ends.
func endSandbox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ends ID")
	}
	dir, _, err := control.Find(ts.MkAbs("run"), args[0])
	ts.Check(err)
	stdin, _ := ends.Load(dir)
	stdin.(io.Closer).Close()
}

func ask(ts *testscript.TestScript, conn *control.Conn, msg control.ToMonitor, files ...*os.File) {
	var a control.FromMonitor
	ts.Check(conn.Send(msg, files...))
	_, err := conn.Recv(&a)
	ts.Check(err)
	if a.Fault != "" {
		ts.Fatalf("the monitor says: %s", a.Fault)
	}
}

// awaitLine is "await ID WORDS": it follows the sandbox's log until a line says
// WORDS.
func awaitLine(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await ID WORDS")
	}
	dir, _, err := control.Find(ts.MkAbs("run"), args[0])
	ts.Check(err)
	c, err := control.Dial("unix", control.Gateway(dir), control.ControlSocket)
	ts.Check(err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprint(c, "GET /v1/events HTTP/1.0\r\n\r\n")
	found := errors.New("found")
	err = eachLine(c, func(line []byte) error {
		if strings.Contains(string(line), args[1]) {
			return found
		}
		return nil
	})
	if err != found {
		ts.Fatalf("no line says %q: %v", args[1], err)
	}
}

func newNetns(ts *testscript.TestScript) *os.File {
	files, errs := make(chan *os.File, 1), make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			var f *os.File
			f, err = os.Open("/proc/thread-self/ns/net")
			files <- f
		}
		errs <- err
	}()
	ts.Check(<-errs)
	f := <-files
	ts.Defer(func() { f.Close() })
	return f
}

// listen opens six sockets. In the first a connection waits, so that there is a
// worker; nobody else connects to them.
func listen(*os.File) (files []*os.File, err error) {
	for range control.SetupFiles - 1 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return files, err
		}
		f, err := l.(*net.TCPListener).File()
		l.Close()
		if err != nil {
			return files, err
		}
		files = append(files, f)
		if len(files) == 1 {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return files, err
			}
			c.Close()
		}
	}
	return files, nil
}

func TestReorder(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"list", "list"},
		{"log web -f", "log -f web"},
		{"approve web h:1 --permanent --json", "approve --permanent --json web h:1"},
		{"deny web h:1 --permanent", "deny --permanent web h:1"},
		{"--help approve web", "--help approve web"},
		{"audit verify file --json", "audit verify --json file"},
		{"deny -- -web h:1", "deny -- -web h:1"},
		{"log web --generate-bash-completion", "log web --generate-bash-completion"},
	} {
		got := strings.Join(reorder(newApp(io.Discard, io.Discard), strings.Fields("nemoclawctl "+c.in)), " ")
		if got != "nemoclawctl "+c.out {
			t.Errorf("%q becomes %q", c.in, got)
		}
	}
}

// Nothing that a sandbox chooses reaches the terminal but letters.
func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b]0;title\x07b\u202ec\u0085")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range cell(s) {
			if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
				t.Errorf("%q keeps %U", s, r)
			}
		}
	})
}

// Exit codes: 0 done, 1 it failed, 2 the command line is wrong. 3, weaker than
// asked, takes a sandbox.
func TestExitCodes(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "run_dir: %s\n", t.TempDir()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NEMOCLAW_CONFIG", config)
	for _, c := range []struct {
		args string
		code int
	}{
		{"list", exitOK}, {"list --json", exitOK}, {"--help", exitOK}, {"", exitOK}, {"pending", exitOK},
		{"status nobody", exitFailed}, {"audit verify /nothing", exitFailed},
		{"bogus", exitUsage}, {"status", exitOK}, {"list too many", exitUsage}, {"status too many", exitUsage}, {"--bogus", exitUsage},
		{"list --bogus", exitUsage}, {"audit bogus", exitUsage}, {"approve web :1", exitUsage},
	} {
		if code := run(append([]string{"nemoclawctl"}, strings.Fields(c.args)...), io.Discard, io.Discard); code != c.code {
			t.Errorf("nemoclawctl %s exits with %d, want %d", c.args, code, c.code)
		}
	}
}
