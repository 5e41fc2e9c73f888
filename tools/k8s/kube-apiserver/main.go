// kube-apiserver, as upstream's cmd/kube-apiserver builds it: `go install` refuses the replace
// lines of that module, so its main stands here.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() { os.Exit(cli.Run(app.NewAPIServerCommand())) }
