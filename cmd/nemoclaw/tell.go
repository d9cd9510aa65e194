package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"nemoclaw/runtime"
)

// tell is how errors reach people and engines: on stderr as a sentence with its
// hint on a line of its own, and in --log as its last entry of level error,
// where containerd's shim looks for it.
type tell struct {
	stderr io.Writer
	file   *os.File // --log; nil without it
}

// configure sets up libcontainer's logging, which is logrus's global logger.
func (t *tell) configure(c *cli.Context) error {
	logrus.SetOutput(t.stderr)
	if c.Bool("debug") {
		logrus.SetLevel(logrus.DebugLevel)
	} else {
		logrus.SetLevel(logrus.WarnLevel)
	}
	switch format := c.String("log-format"); format {
	case "text":
	case "json":
		logrus.SetFormatter(&logrus.JSONFormatter{})
	default:
		return usageError{fmt.Errorf("invalid log-format: %s", format)}
	}
	if name := c.String("log"); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o644)
		if err != nil {
			return fmt.Errorf("cannot open the log: %w", err)
		}
		t.file = f
		logrus.SetOutput(f)
	}
	return nil
}

func (t *tell) fault(err error) {
	hint := runtime.Hint(err)
	fmt.Fprintf(t.stderr, "nemoclaw: %v\n", err)
	for line := range strings.Lines(hint) {
		fmt.Fprintf(t.stderr, "nemoclaw: hint: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if t.file != nil {
		said := err.Error()
		if hint != "" {
			said += "\nhint: " + hint
		}
		logrus.Error(said)
	}
}

func (t *tell) Close() {
	if t.file != nil {
		t.file.Close()
	}
}
