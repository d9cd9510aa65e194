package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
)

// patience is how long anything may take before a test calls it hung. Nothing
// is measured by it; an emulated machine takes its time.
const patience = time.Minute

func TestMain(m *testing.M) {
	if spec := os.Getenv(denyEnv); spec != "" {
		fmt.Fprintln(os.Stderr, denyAndBecome(spec, os.Args[1:]))
		os.Exit(1)
	}
	// What the programs under test leave running becomes our child, so that
	// leaks can be told from what others run on this machine.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// lacking ends a test for want of something of the machine's: CI must have it.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI lacks what this test needs: "+format, args...)
	}
	t.Skipf(format, args...)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		lacking(t, "it takes root to create containers")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		lacking(t, "the test image is made of busybox (package busybox-static)")
	}
}

// programs is the directory of the programs under test.
var programs = sync.OnceValue(func() string {
	if dir := os.Getenv("NEMOCLAW_TEST_BIN"); dir != "" {
		return dir
	}
	dir, err := filepath.Abs("../bin")
	if err != nil {
		panic(err)
	}
	return dir
})

// program returns the path of a program under test.
func program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(programs(), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("there is no %s: run \"make build\"", path)
	}
	return path
}

// probeProgram is the attacker, built once, or brought along with other programs
// under test.
var probeProgram = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("NEMOCLAW_TEST_BIN"); dir != "" {
		path := filepath.Join(dir, "probe")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	path, err := filepath.Abs("../bin/probe")
	if err != nil {
		return "", err
	}
	// Under another name first: other packages' tests build it as well.
	fresh := fmt.Sprint(path, ".", os.Getpid())
	build := exec.Command("go", "build", "-o", fresh, "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build the probe: %w: %s", err, out)
	}
	return path, os.Rename(fresh, path)
})

// cached returns the path of a file that outlives the tests.
func cached(name string) (string, error) {
	dir, err := filepath.Abs("../.cache/integration")
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), os.MkdirAll(dir, 0o755)
}

// box is one container with everything around it: settings, policy, state and
// logs of its own in a directory that ends with the test.
type box struct {
	t     *testing.T
	dir   string
	id    string
	spec  *oci.Spec
	bin   string   // directory of the programs under test
	flags []string // global flags of the runtime
	deny  string   // see denyEnv
	pod   bool     // its state and logs are another box's too
	// host is the path of the network namespace that is the host's for the
	// runtime; empty: the test's own.
	host string
	// runtime is another runtime's program; empty: nemoclaw.
	runtime string
	// patience is how long a command may take; 0: patience.
	patience time.Duration
}

var boxes atomic.Int32

// newBox makes a box whose container would run the probe as root, with what
// Docker gives by default. The policy is what world-less tests need: nothing
// may be reached.
func newBox(t *testing.T) *box {
	t.Helper()
	needRoot(t)
	b := &box{t: t, id: fmt.Sprintf("law-%d-%d", os.Getpid(), boxes.Add(1)), bin: filepath.Dir(program(t, "nemoclaw"))}
	dir, err := os.MkdirTemp("", "law") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	b.dir = dir
	t.Cleanup(b.close)
	b.mkdir("bundle", "run", "log", "policies", "root")
	b.settings("")
	b.policy("egress: {rules: []}\n")
	makeImage(t, b.rootfs())
	b.spec = b.example()
	return b
}

func (b *box) path(name string) string { return filepath.Join(b.dir, name) }

func (b *box) rootfs() string { return b.path("bundle/rootfs") }

func (b *box) mkdir(names ...string) {
	b.t.Helper()
	for _, name := range names {
		b.must(os.MkdirAll(b.path(name), 0o755))
	}
}

func (b *box) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// settings writes config.yaml; more is appended, and a key in it replaces the
// box's own.
func (b *box) settings(more string) {
	b.t.Helper()
	var text strings.Builder
	real := func(name string) string { // another box's, where it shares them
		dir, err := filepath.EvalSymlinks(b.path(name))
		b.must(err)
		return dir
	}
	for _, kv := range [][2]string{{"run_dir", real("run")}, {"log_dir", real("log")}, {"policy_dir", b.path("policies")}, {"policy", b.path("policy.yaml")}} {
		if !strings.HasPrefix(more, kv[0]+":") {
			fmt.Fprintf(&text, "%s: %s\n", kv[0], kv[1])
		}
	}
	b.write("config.yaml", text.String()+more)
}

// policy saves the policy as editors do: whole, by a rename.
func (b *box) policy(text string) {
	b.t.Helper()
	b.write(".policy", text)
	b.must(os.Rename(b.path(".policy"), b.path("policy.yaml")))
}

func (b *box) write(name, text string) {
	b.t.Helper()
	b.must(os.WriteFile(b.path(name), []byte(text), 0o644))
}

// example is the spec that "nemoclaw spec" writes, with Docker's capabilities.
func (b *box) example() *oci.Spec {
	b.t.Helper()
	if got := b.nemoclaw(nil, "spec", "--bundle", b.path("bundle")); got.code != 0 {
		b.t.Fatalf("nemoclaw spec: %s", got)
	}
	src, err := os.ReadFile(b.path("bundle/config.json"))
	b.must(err)
	spec := new(oci.Spec)
	b.must(json.Unmarshal(src, spec))
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/bin/probe", "serve"}
	spec.Root.Readonly = false
	spec.Linux.CgroupsPath = "/" + b.id
	setCapabilities(spec, dockerCapabilities...)
	return spec
}

var dockerCapabilities = []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}

func setCapabilities(spec *oci.Spec, names ...string) {
	spec.Process.Capabilities = &oci.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// asUser makes the container's program that of uid 1000, without capabilities.
func (b *box) asUser() *box {
	b.spec.Process.User = oci.User{UID: 1000, GID: 1000}
	setCapabilities(b.spec)
	return b
}

func (b *box) saveSpec() {
	b.t.Helper()
	src, err := json.Marshal(b.spec)
	b.must(err)
	b.write("bundle/config.json", string(src))
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// command is the runtime with the box's settings. Its streams are files or
// pipes of ours, never copied by goroutines: containers keep them open.
func (b *box) command(args ...string) *exec.Cmd {
	path := filepath.Join(b.bin, "nemoclaw")
	if b.runtime != "" {
		path = b.runtime
	}
	cmd := exec.Command(path, slices.Concat([]string{"--root", b.path("root")}, b.flags, args)...)
	cmd.Env = append(os.Environ(), "NEMOCLAW_CONFIG="+b.path("config.yaml"))
	return b.denying(cmd)
}

// denying makes cmd run without what the box denies.
func (b *box) denying(cmd *exec.Cmd) *exec.Cmd {
	if b.deny != "" {
		cmd.Env = append(cmd.Env, denyEnv+"="+b.deny)
		cmd.Args = slices.Concat([]string{"deny", cmd.Path}, cmd.Args[1:])
		cmd.Path = "/proc/self/exe"
	}
	return cmd
}

// begin starts cmd in the network that is the host's for the box.
func (b *box) begin(cmd *exec.Cmd) error {
	if b.host == "" {
		return cmd.Start()
	}
	return within(b.host, cmd.Start)
}

// nemoclaw runs one command of the runtime to its end.
func (b *box) nemoclaw(stdin io.Reader, args ...string) result {
	b.t.Helper()
	cmd := b.command(args...)
	cmd.Stdin = stdin
	return b.finish(cmd)
}

// finish runs cmd to its end and returns what it and its container wrote until
// then.
func (b *box) finish(cmd *exec.Cmd) result {
	b.t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(b.dir, "out")
		b.must(err)
		defer os.Remove(f.Name())
		defer f.Close()
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	b.must(b.begin(cmd))
	alarm := time.AfterFunc(max(b.patience, patience), func() { cmd.Process.Kill() })
	defer alarm.Stop()
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		b.t.Fatal(err)
	}
	r := result{code: cmd.ProcessState.ExitCode()}
	for i, to := range []*string{&r.stdout, &r.stderr} {
		text, err := os.ReadFile(files[i].Name())
		b.must(err)
		*to = string(text)
	}
	return r
}

// run runs a program in a container of its own, from create to delete.
func (b *box) run(args ...string) result {
	b.t.Helper()
	b.spec.Process.Args = args
	b.saveSpec()
	return b.nemoclaw(nil, "run", "--bundle", b.path("bundle"), b.id)
}

// ask runs the probe as the program of a container of its own and returns its
// answers to verbs.
func (b *box) ask(verbs ...string) []string {
	b.t.Helper()
	b.spec.Process.Args = []string{"/bin/probe", "serve"}
	b.saveSpec()
	got := b.nemoclaw(strings.NewReader(strings.Join(verbs, "\n")+"\n"), "run", "--bundle", b.path("bundle"), b.id)
	answers := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
	if got.code != 0 || len(answers) != len(verbs) {
		b.t.Fatalf("the probe gave %d answers to %d verbs: %s", len(answers), len(verbs), got)
	}
	return answers
}

// talk is a conversation with a probe that serves in a container.
type talk struct {
	t     *testing.T
	name  string // main or exec
	in    *os.File
	out   *os.File
	r     *bufio.Reader
	cmd   *exec.Cmd // of exec
	err   string    // file of its stderr
	self  string    // see pid
	asked string    // last
}

// create makes the container, whose program will be a serving probe, and
// returns the conversation that begins with start.
func (b *box) create() (*talk, result) {
	b.t.Helper()
	b.saveSpec()
	k, theirs := b.pipes("main")
	defer theirs[0].Close()
	defer theirs[1].Close()
	cmd := b.command("create", "--bundle", b.path("bundle"), "--pid-file", b.path("pid"), b.id)
	cmd.Stdin, cmd.Stdout = theirs[0], theirs[1]
	stderr, err := os.Create(k.err)
	b.must(err)
	defer stderr.Close()
	cmd.Stderr = stderr
	b.must(b.begin(cmd))
	alarm := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer alarm.Stop()
	_ = cmd.Wait() // its exit code tells
	said, _ := os.ReadFile(k.err)
	return k, result{stderr: string(said), code: cmd.ProcessState.ExitCode()}
}

func (b *box) start() result {
	b.t.Helper()
	return b.nemoclaw(nil, "start", b.id)
}

// up creates and starts the container.
func (b *box) up() *talk {
	b.t.Helper()
	k, got := b.create()
	if got.code != 0 {
		b.t.Fatalf("create: %s", got)
	}
	if got := b.start(); got.code != 0 {
		b.t.Fatalf("start: %s", got)
	}
	return k
}

// exec starts another probe in the container.
func (b *box) exec(flags ...string) *talk {
	b.t.Helper()
	k, theirs := b.pipes("exec")
	defer theirs[0].Close()
	defer theirs[1].Close()
	cmd := b.command(append(append([]string{"exec"}, flags...), b.id, "/bin/probe", "serve")...)
	cmd.Stdin, cmd.Stdout = theirs[0], theirs[1]
	stderr, err := os.Create(k.err)
	b.must(err)
	defer stderr.Close()
	cmd.Stderr = stderr
	b.must(b.begin(cmd))
	k.cmd = cmd
	b.t.Cleanup(k.end) // before the box's own cleanup
	return k
}

// execute runs a program in the container to its end.
func (b *box) execute(args ...string) result {
	b.t.Helper()
	return b.nemoclaw(nil, append([]string{"exec"}, args...)...)
}

func (b *box) pipes(name string) (*talk, [2]*os.File) {
	b.t.Helper()
	r, in, err := os.Pipe()
	b.must(err)
	out, w, err := os.Pipe()
	b.must(err)
	k := &talk{t: b.t, name: name, in: in, out: out, r: bufio.NewReaderSize(out, 1<<20), err: b.path(fmt.Sprintf("stderr-%s-%d", name, boxes.Add(1)))}
	b.t.Cleanup(func() { in.Close(); out.Close() })
	return k, [2]*os.File{r, w}
}

// send gives a verb to the probe; its answer is read by answer.
func (k *talk) send(verb string) {
	k.t.Helper()
	k.asked = verb
	if _, err := io.WriteString(k.in, verb+"\n"); err != nil {
		k.t.Fatalf("%s: cannot ask %q: %v: %s", k.name, verb, err, k.stderr())
	}
}

func (k *talk) answer() string {
	k.t.Helper()
	if err := k.out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		k.t.Fatal(err)
	}
	line, err := k.r.ReadString('\n')
	if err != nil {
		k.t.Fatalf("%s: the probe does not answer %q: %v: %q %s", k.name, k.asked, err, line, k.stderr())
	}
	return strings.TrimSuffix(line, "\n")
}

// ask is send and answer.
func (k *talk) ask(verb string) string {
	k.t.Helper()
	k.send(verb)
	return k.answer()
}

// want asks and compares: an answer must begin with want.
func (k *talk) want(want, verb string) {
	k.t.Helper()
	if got := k.ask(verb); !strings.HasPrefix(got, want) {
		k.t.Errorf("%s: %s: %s, want %s", k.name, verb, got, want)
	}
}

func (k *talk) stderr() string {
	said, _ := os.ReadFile(k.err)
	return string(said)
}

// silent reports whether the program wrote nothing until it ended: it never
// ran.
func (k *talk) silent() bool {
	k.t.Helper()
	k.in.Close() // a probe that runs ends here
	if err := k.out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		k.t.Fatal(err)
	}
	b, err := io.ReadAll(k.r)
	return err == nil && len(b) == 0
}

// end lets the probe of an exec end.
func (k *talk) end() {
	k.in.Close()
	if k.cmd != nil {
		alarm := time.AfterFunc(patience, func() { k.cmd.Process.Kill() })
		_ = k.cmd.Wait()
		alarm.Stop()
		k.cmd = nil
	}
}

// initPID is the container's first process.
func (b *box) initPID() int {
	b.t.Helper()
	text, err := os.ReadFile(b.path("pid"))
	b.must(err)
	pid, err := strconv.Atoi(string(text))
	b.must(err)
	return pid
}

// stateDir is the container's directory, or "" if there is none.
func (b *box) stateDir() string {
	dirs, _ := filepath.Glob(b.path("run/" + b.id + ".????????"))
	if len(dirs) == 0 {
		return ""
	}
	return dirs[0]
}

// gatewayDir is the directory of the gateway that the container is behind.
func (b *box) gatewayDir() string {
	b.t.Helper()
	dir, err := os.Readlink(filepath.Join(b.stateDir(), "gateway"))
	b.must(err)
	return dir
}

// monitor is the pid of the gateway's monitor, and worker that of its child.
func (b *box) monitor() int {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.gatewayDir(), "monitor.json"))
	b.must(err)
	var m struct{ PID int }
	b.must(json.Unmarshal(text, &m))
	return m.PID
}

// If there is none yet, an empty datagram in place of a question starts it.
func (b *box) worker() int {
	b.t.Helper()
	if len(b.workers()) == 0 {
		b.inside(func() error {
			c, err := net.Dial("udp", "198.18.0.1:53")
			if err != nil {
				return err
			}
			_, err = c.Write(nil)
			return errors.Join(err, c.Close())
		})
		waitFor(b.t, func() bool { return b.status().Worker != 0 })
	}
	workers := b.workers()
	if len(workers) != 1 {
		b.t.Fatalf("the monitor has the workers %v", workers)
	}
	return workers[0]
}

func (b *box) workers() (pids []int) {
	b.t.Helper()
	for _, pid := range children(b.monitor()) {
		if runs(pid, "worker") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// runs reports whether a process is the gateway's program with this argument.
func runs(pid int, arg string) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasSuffix(string(line), "\x00"+arg+"\x00")
}

// loseGateway kills the gateway, and has it that nobody can start it again.
func (b *box) loseGateway() {
	b.t.Helper()
	var workers []int
	for _, pid := range b.workers() {
		worker, err := unix.PidfdOpen(pid, 0)
		b.must(err)
		defer unix.Close(worker)
		workers = append(workers, worker)
	}
	kill(b.t, b.monitor()) // first: it would start another worker
	for _, worker := range workers {
		if !ended(worker) {
			b.t.Fatal("the worker outlives its monitor")
		}
	}
	b.must(os.Remove(filepath.Join(b.gatewayDir(), "attach.json")))
}

// children are the processes that pid has started.
func children(pid int) []int {
	var pids []int
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range threads {
		text, _ := os.ReadFile(file)
		for f := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// kill ends a process and returns when it is gone.
func kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatalf("cannot hold process %d: %v", pid, err)
		}
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatalf("cannot kill process %d: %v", pid, err)
		}
		if !ended(fd) {
			t.Fatalf("process %d does not die", pid)
		}
	}
}

// ended waits until the process of a pidfd has ended (pidfd_open(2)).
func ended(pidfd int) bool {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds())); n > 0 && err == nil {
			return true
		}
	}
	return false
}

// inbound is the direction of connections from outside.
const inbound = 1

// line is one line of the audit log.
type line struct {
	Message string
	Dst     struct {
		Hostname, IP string
		Port         int
	} `json:"dst_endpoint"`
	Src struct {
		IP   string
		Port int
	} `json:"src_endpoint"`
	Traffic struct {
		In         int `json:"bytes_in"`
		Out        int `json:"bytes_out"`
		PacketsIn  int `json:"packets_in"`
		PacketsOut int `json:"packets_out"`
	}
	Duration int
	Rule     struct{ Name string } `json:"firewall_rule"`
	Actor    struct {
		Process struct {
			PID       int
			File      struct{ Path string }
			Container struct{ UID string }
		}
	}
	Connection struct {
		Name      string `json:"protocol_name"`
		Number    int    `json:"protocol_num"`
		Direction int    `json:"direction_id"`
	} `json:"connection_info"`
	More struct {
		Verdict, Reason, Would, Detail, Kind, Prev, Unsure string
		Generation, Count                                  int
	} `json:"unmapped"`
	Metadata struct {
		UID      string
		Sequence int
	}
	Count int
}

// audit is the log as it is now.
func (b *box) audit() []line {
	b.t.Helper()
	text, err := os.ReadFile(b.auditFile())
	b.must(err)
	var lines []line
	for l := range strings.Lines(string(text)) {
		var got line
		b.must(json.Unmarshal([]byte(l), &got))
		lines = append(lines, got)
	}
	return lines
}

func (b *box) auditFile() string {
	b.t.Helper()
	files, _ := filepath.Glob(b.path("log/*.jsonl"))
	if len(files) != 1 {
		b.t.Fatalf("there are %d audit logs", len(files))
	}
	return files[0]
}

// await returns the first line of the audit log, written or to come, that is
// as wanted.
func (b *box) await(what string, wanted func(line) bool) (got line) {
	b.t.Helper()
	b.awaitLine(what, func(text json.RawMessage) bool {
		got = line{}
		b.must(json.Unmarshal(text, &got))
		return wanted(got)
	})
	return got
}

// awaitLine is await for whoever reads lines himself.
func (b *box) awaitLine(what string, wanted func(json.RawMessage) bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://gateway/v1/events?after=0", nil)
	b.must(err)
	resp, err := b.control().Do(req)
	b.must(err)
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var text json.RawMessage
		if err := dec.Decode(&text); err != nil {
			b.t.Fatalf("the audit log never tells of %s: %v", what, err)
		}
		if wanted(text) {
			return
		}
	}
}

// control speaks to the gateway as an operator does.
func (b *box) control() *http.Client {
	socket := filepath.Join(b.gatewayDir(), "control.sock")
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// status is the gateway's.
func (b *box) status() (s struct {
	Generation  int
	PolicyFault string `json:"policy_fault"`
	AuditFault  string `json:"audit_fault"`
	Open        int
	Worker      int `json:"worker_pid"`
	Notes       []string
}) {
	b.t.Helper()
	resp, err := b.control().Get("http://gateway/v1/status")
	b.must(err)
	defer resp.Body.Close()
	b.must(json.NewDecoder(resp.Body).Decode(&s))
	return s
}

// decide is an operator's word about a host and port.
func (b *box) decide(verb, host string, port int) {
	b.t.Helper()
	body := fmt.Sprintf(`{"verb":%q,"host":%q,"port":%d}`, verb, host, port)
	resp, err := b.control().Post("http://gateway/v1/decisions", "application/json", strings.NewReader(body))
	b.must(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(resp.Body)
		b.t.Fatalf("decision %s: %s: %s", body, resp.Status, said)
	}
}

// close ends the container and whatever is left of it, and says what was left
// that should not have been.
func (b *box) close() {
	t := b.t
	if got := b.nemoclaw(nil, "delete", "--force", b.id); got.code != 0 {
		t.Errorf("delete: %s", got)
	}
	for _, what := range b.leftovers() {
		t.Errorf("left behind: %s", what)
	}
	b.checkLines()
	if err := os.RemoveAll(b.dir); err != nil {
		t.Error(err)
	}
}

// checkLines compares every line of the audit logs with what OCSF says of it,
// but for those that a test has broken.
func (b *box) checkLines() {
	files, _ := filepath.Glob(b.path("log/*.jsonl*"))
	for _, file := range files {
		text, _ := os.ReadFile(file)
		for line := range bytes.Lines(text) {
			var l struct{ Metadata struct{ Sequence int } }
			if json.Unmarshal(line, &l) != nil || l.Metadata.Sequence == 0 {
				continue
			}
			for _, fault := range audit.Conforms(line) {
				b.t.Errorf("%s in the line %s", fault, line)
			}
		}
	}
}

// leftovers are what a sandbox left behind, and what is done away with here.
func (b *box) leftovers() (left []string) {
	for _, pid := range children(os.Getpid()) {
		reap(pid) // first all that have ended: an init waits for its zombies
	}
	for _, pid := range children(os.Getpid()) {
		if b.pod {
			break // the other box looks for them
		}
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); !endsSoon(pid) {
			left = append(left, fmt.Sprintf("process %d: %q", pid, name))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; strings.HasPrefix(point, b.dir+"/") {
			left = append(left, "mount "+point)
			_ = unix.Unmount(point, unix.MNT_DETACH)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/", "/sys/fs/cgroup/*/nemoclaw/", "/sys/fs/cgroup/nemoclaw/"} {
		dirs, _ := filepath.Glob(pattern + b.id + "*")
		for _, dir := range dirs {
			if name := filepath.Base(dir); name == b.id || strings.HasPrefix(name, b.id+".") {
				left = append(left, "cgroup "+dir)
				_ = os.Remove(dir)
			}
		}
	}
	for _, dir := range []string{"run", "root"} {
		entries, _ := os.ReadDir(b.path(dir))
		for _, e := range entries {
			if b.pod && !strings.HasPrefix(e.Name(), b.id+".") || e.Name() == "lock" {
				continue
			}
			left = append(left, "state "+b.path(dir)+"/"+e.Name())
		}
	}
	return left
}

// endsSoon gives a process a moment to end and kills it then.
func endsSoon(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	if n <= 0 {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
	}
	reap(pid)
	return n > 0
}

// reap collects a child that has ended.
func reap(pid int) { _, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) }

// makeImage makes a root file system: busybox, the probe, and something to
// steal in every place that a policy leaves out. Nothing in it is protected by
// its mode: what is denied, nemoclaw denies.
func makeImage(t *testing.T, root string) {
	t.Helper()
	unix.Umask(0o022)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "etc", "root", "home/user", "mnt", "usr/share", "opt/app", "proc", "sys", "dev", "var"} {
		must(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	probe, err := probeProgram()
	must(err)
	busybox, err := exec.LookPath("busybox")
	must(err)
	for to, from := range map[string]string{"bin/probe": probe, "bin/busybox": busybox} {
		text, err := os.ReadFile(from)
		must(err)
		must(os.WriteFile(filepath.Join(root, to), text, 0o755))
	}
	for _, applet := range []string{"sh", "cat", "echo", "true", "sleep", "id", "ls"} {
		must(os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	for file, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", "etc/hosts": "127.0.0.1 localhost\n",
		"root/secret": "stolen", "home/user/secret": "stolen", "mnt/secret": "stolen", "usr/share/text": "public", "opt/app/text": "public",
	} {
		must(os.WriteFile(filepath.Join(root, file), []byte(text), 0o666))
		must(os.Chmod(filepath.Join(root, file), 0o666)) // whatever the umask is
	}
	for _, dir := range []string{"root", "home/user", "mnt", "usr/share", "opt/app", "etc"} {
		must(os.Chmod(filepath.Join(root, dir), 0o777))
	}
	for link, to := range map[string]string{"work": "/root", "everything": "/"} {
		must(os.Symlink(to, filepath.Join(root, link)))
	}
	mine, err := os.Readlink("/proc/self/ns/mnt")
	must(err)
	must(os.Symlink(mine, filepath.Join(root, ".nemoclaw-test-root")))
}

// denyEnv makes this test program deny itself system calls and become another
// program, which inherits that: a kernel that lacks something. Its value is
// "ERRNO NUMBER...".
const denyEnv = "NEMOCLAW_TEST_DENY"

func denyAndBecome(spec string, args []string) error {
	goruntime.LockOSThread()
	fields := strings.Fields(spec)
	var nrs []int
	for _, f := range fields {
		n, err := strconv.Atoi(f)
		if err != nil {
			return err
		}
		nrs = append(nrs, n)
	}
	// Without the variable: what we become may start us.
	if err := os.Unsetenv(denyEnv); err != nil {
		return err
	}
	code := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}} // the number
	for _, nr := range nrs[1:] {
		code = append(code,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(nr)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(nrs[0])})
	}
	code = append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	if err := loadFilter(code); err != nil {
		return err
	}
	return syscall.Exec(args[0], args, os.Environ())
}
