// kube-apiserver, as upstream's cmd/kube-apiserver builds it: `go install` refuses the replace
// lines of that module, so its main stands here.
package main

import (
	"os"
	_ "time/tzdata" // time zones of CronJobs

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
