package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit codes. No measurement changes them.
const (
	exitOK     = 0
	exitFailed = 1 // something could not be measured at all
	exitUsage  = 2 // the command line is wrong
)

// options are the command line.
type options struct {
	only   []string
	ways   []string
	rounds int
	json   bool
}

// measures tells whether a part of the run was asked for.
func (o options) measures(part string) bool { return slices.Contains(o.only, part) }

// section is one part of the run.
type section struct {
	name string
	run  func(*bench) error
}

var sections = []section{
	{"lifecycle", (*bench).lifecycle},
	{"exec", (*bench).exec},
	{"net", (*bench).network},
	{"dns", (*bench).dns},
	{"memory", (*bench).memory},
	{"reload", (*bench).reload},
	{"attach", (*bench).attach},
	{"density", (*bench).density},
	{"files", (*bench).files},
}

func init() { goruntime.LockOSThread() } // the host dies with this thread (PR_SET_PDEATHSIG)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is what the program does as each of its four selves: the command, the
// first process of the throw-away host, the measuring, and the client inside of
// containers.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 2 && args[1] == clientArg {
		return beClient(os.Stdin, stdout)
	}
	o, err := parse(args, stderr)
	if err != nil {
		return exitUsage
	}
	switch os.Getenv(stageEnv) {
	case "init":
		return beInit(args)
	case "bench":
		err = measure(o, stdout, stderr)
	default:
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		err = runHost(ctx, o, args, stderr)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return exitFailed
	}
	return exitOK
}

func parse(args []string, stderr io.Writer) (options, error) {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	only := f.String("only", strings.Join(names, ","), "measure these `parts`")
	ways := f.String("ways", "", "measure the network over these `ways` only, e.g. gateway,haproxy")
	rounds := f.Int("rounds", 30, "measure each part this `often`; the network a third of it")
	asJSON := f.Bool("json", false, "print every sample, as JSON")
	if err := f.Parse(args[1:]); err != nil {
		return options{}, err
	}
	o := options{strings.Split(*only, ","), strings.Split(*ways, ","), max(*rounds, 1), *asJSON}
	for _, name := range o.only {
		if !slices.Contains(names, name) {
			fmt.Fprintf(stderr, "bench: cannot measure %q (known: %s)\n", name, strings.Join(names, ", "))
			return options{}, flag.ErrHelp
		}
	}
	return o, nil
}

// bench is one run, inside the throw-away host.
type bench struct {
	ways    []string // parts of the names of the ways to measure
	rounds  int
	repo    string // the source tree; bin/ lies in it
	scratch string // a directory on the machine's disk, which ends with the host
	cgroup  string // parent of every container's cgroup
	stderr  io.Writer
	print   func(table) error

	runtimes    []contestant
	missing     []string // runtimes that are not installed
	descriptors int      // that a process may have
	debian      string   // where the proxies out of Debian lie, once they are mounted
	started     int      // containers so far, for their names
}

// measure runs the parts that were asked for, and goes on after one that
// cannot be measured.
func measure(o options, stdout, stderr io.Writer) error {
	b := &bench{ways: o.ways, rounds: o.rounds, repo: os.Getenv(repoEnv), scratch: os.Getenv(scratchEnv), cgroup: os.Getenv(cgroupEnv), stderr: stderr}
	b.print = func(t table) error { return t.markdown(stdout) }
	if o.json {
		b.print = func(t table) error { return json.NewEncoder(stdout).Encode(t) }
	}
	var err error
	if b.descriptors, err = manyFiles(); err != nil {
		return fmt.Errorf("cannot allow many open files: %w", err)
	}
	if err := b.prepare(); err != nil {
		return err
	}
	if !o.json {
		fmt.Fprintln(stdout, machine())
	}
	var errs []error
	for _, s := range sections {
		if !o.measures(s.name) {
			continue
		}
		if err := s.run(b); err != nil {
			errs = append(errs, fmt.Errorf("cannot measure %s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

// manyFiles lets the servers, the clients and the proxies, which inherit it,
// have as many descriptors as it may, and returns how many that is. (A limit
// that was set is not undone by os/exec; the one that Go raises itself is.)
func manyFiles() (int, error) {
	const enough = 65536
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: enough, Max: enough}); err == nil {
		return enough, nil
	}
	var may syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &may); err != nil {
		return 0, err
	}
	may.Cur = may.Max
	return int(may.Max), syscall.Setrlimit(syscall.RLIMIT_NOFILE, &may)
}

// machine says what the numbers were taken on, and whether it had other work.
func machine() string {
	var u unix.Utsname
	var info unix.Sysinfo_t
	if err := errors.Join(unix.Uname(&u), unix.Sysinfo(&info)); err != nil {
		return "unknown machine"
	}
	load := float64(info.Loads[0]) / (1 << unix.SI_LOAD_SHIFT)
	text := fmt.Sprintf("Linux %s, %s, %d processors, load %.1f", unix.ByteSliceToString(u.Release[:]), goruntime.GOARCH, goruntime.NumCPU(), load)
	if load > 0.5 {
		text += " (others are at work: the ratios are rough, the times mean nothing)"
	}
	return text
}
