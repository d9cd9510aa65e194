package main

import (
	"os"

	_ "github.com/opencontainers/cgroups/devices" // or device rules are refused
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // its constructor joins the namespaces before Go starts
)

// libcontainer starts us again as "nemoclaw init", the first process of a
// container: it becomes the launcher, and never returns from here.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}
