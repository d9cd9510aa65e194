// Command nemoclaw-gateway is the one way out of a sandbox: a monitor, which
// nemoclaw starts with each container, and the worker that the monitor starts;
// beside them, one for all sandboxes, the reader of the kernel's denials.
// People have no use for it; nemoclawctl speaks to it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"runtime/debug"
	"strings"

	"github.com/sirupsen/logrus"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // it could not do its work
	exitUsage  = 2 // the command line is wrong
)

const usage = `nemoclaw-gateway is started by nemoclaw and by itself:

  nemoclaw-gateway monitor DIR   serve the sandbox of a state directory; the
                                 creator's conversation is on descriptor 3
  nemoclaw-gateway worker        decide connections; the monitor's
                                 conversation is on descriptor 3
  nemoclaw-gateway denials       tell monitors what the kernel refuses to their
                                 sandboxes; its sockets are descriptors 3 to 5
  nemoclaw-gateway --version
`

// conversation is the descriptor on which either program hears who started it.
const conversation = 3

func init() {
	// A thread that enters another namespace ends with its goroutine. The
	// first thread cannot end, so it belongs to main.
	goruntime.LockOSThread()
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	logrus.SetOutput(stderr)
	flags := flag.NewFlagSet("nemoclaw-gateway", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	version := flags.Bool("version", false, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitOK
	case err != nil:
		return wrong(stderr, err.Error())
	case *version:
		fmt.Fprintln(stdout, "nemoclaw-gateway "+revision())
		return exitOK
	}
	switch args := flags.Args(); {
	case len(args) == 2 && args[0] == "monitor":
		return ended(runMonitor(args[1]))
	case len(args) == 1 && args[0] == "worker":
		goruntime.UnlockOSThread()
		return ended(runWorker())
	case len(args) == 1 && args[0] == "denials":
		goruntime.UnlockOSThread()
		return ended(runDenials())
	case len(args) == 0:
		return wrong(stderr, "there is no command")
	default:
		return wrong(stderr, fmt.Sprintf("there is no command %q", strings.Join(args, " ")))
	}
}

func ended(err error) int {
	if err != nil {
		logrus.Error(err)
		return exitFailed
	}
	return exitOK
}

func wrong(stderr io.Writer, what string) int {
	fmt.Fprintf(stderr, "nemoclaw-gateway: %s\n%s", what, usage)
	return exitUsage
}

// revision is the module's version, or that of the source it was built from.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && version == "(devel)" {
			version = s.Value
		}
	}
	return version
}
